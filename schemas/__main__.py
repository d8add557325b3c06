"""``python -m schemas``: write the JSON Schemas of ``schemas/json`` from the types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from schemas.control import Control
from schemas.erasures import Erasure
from schemas.events import EARLIEST_MS, ClickEvent, ReviewEvent, ServiceEvent
from schemas.scores import Alert, CtrScore, IntentScore, Opinion, SentimentScore
from schemas.topics import INPUTS
from schemas.trends import TrendBucket

FOLDER = Path(__file__).parent / "json"
TYPES: dict[str, Any] = {
    "events.click": ClickEvent,
    "events.review": ReviewEvent,
    "events.service": ServiceEvent,
    "scores.ctr": CtrScore,
    "scores.sentiment": SentimentScore,
    "scores.intent": IntentScore,
    "opinions": Opinion,
    "alerts.opinion": Alert,
    "erasures": Erasure,
    "alerts.control": Control,
    "trends.opinion": TrendBucket,
}


def json_schema(topic: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of what a topic carries."""
    schema = msgspec.json.schema(TYPES[topic])
    if topic in INPUTS:
        _as_read(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": topic, **schema}


def _as_read(schema: dict[str, Any]) -> None:
    """Say what is read beside the types: null for a default and in a context (`without_absent`); no time in seconds."""
    null = {"type": "null"}
    for struct in schema["$defs"].values():
        for name, shape in struct["properties"].items():
            for each in shape.get("anyOf", [shape]):
                if each.get("type") == "integer":
                    each["minimum"] = EARLIEST_MS
            if "additionalProperties" in shape:
                shape["additionalProperties"]["anyOf"].append(null)
            if "default" in shape and null not in shape.get("anyOf", []):
                default = shape.pop("default")
                struct["properties"][name] = {"anyOf": [shape, null], "default": default}


def main() -> None:
    """Write every schema, one file a topic."""
    FOLDER.mkdir(exist_ok=True)
    for topic in TYPES:
        text = json.dumps(json_schema(topic), ensure_ascii=False, indent=2, sort_keys=True) + "\n"
        (FOLDER / f"{topic}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
