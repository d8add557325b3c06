"""The README's recipes and commands on a model of one's own, run as they are printed, on toy data and a toy body."""

from __future__ import annotations

import gzip
import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from model.artifact import Artifact
from tests.click_head import click_rows
from tests.tiny_artifact import make_tiny_artifact
from tests.toy_training import make_body
from worker.cli.app import main

ROOT = Path(__file__).parents[2]
READMES = {"README.md": "### Your model", "README.zh-CN.md": "### 你的模型"}
MOODS = {"negative": "bad late", "neutral": "movie guitar", "positive": "good thank"}
URGENCIES = {"calm": "please thank", "urgent": "refund late"}
BOUNDS = {  # what a test has no time for; nothing else is changed
    "train --recipe mine.yaml": ["--minutes", "0.05"],
    "millrace tune": ["--trials", "1", "--tokens", "500"],
    "millrace active": ["--count", "3"],
    "millrace label": ["--confidence", "0.3"],
}

pytestmark = pytest.mark.usefixtures("one_thread")


def blocks(readme: str) -> tuple[list[str], list[str]]:
    """YAML blocks of the section on one's own model, and its commands from training on, without comments."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    section = text.split(READMES[readme] + "\n")[1].split("\n### ")[0]
    recipes = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    commands = re.findall(r"```\n(.*?)```", re.sub(r"```yaml\n.*?```", "", section, flags=re.DOTALL), re.DOTALL)
    lines = [line for block in commands if "millrace train" in block for line in block.splitlines()]
    return recipes, [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def rows(kind: str, count: int) -> list[dict[str, Any]]:
    rng, table = random.Random(count), MOODS if kind == "reviews" else URGENCIES
    made: list[dict[str, Any]] = []
    for i in range(count):
        label = list(table)[i % len(table)]
        words = [rng.choice(table[label].split()) for _ in range(3)] + rng.choices(["the", "order", "my", "card"], k=3)
        if kind == "reviews":
            made.append({"text": f"{' '.join(words)} {i}", "mood": label, "rating": i % 3 + 1 + i // 3 % 3})
        else:
            text = {"subject": " ".join(words[:3]), "body": f"{' '.join(words[3:])} {i}"}
            made.append(text | {"prio": label, "reason": "broken" if i % 9 == 0 else "late"})
    return made


def clicks(count: int, start_s: int) -> list[dict[str, Any]]:
    """Impressions of a shop that tells position, price and device, and what was bought."""
    rng = random.Random(count)
    return [
        row
        | {"ts": row["ts"] + start_s, "purchased": int(row["clicked"] and rng.random() < 0.5)}
        | {"context": {"price": rng.random(), "device": rng.choice(["phone", "desk"]), "position": rng.randrange(9)}}
        for row in click_rows(count)
    ]


def written(name: str, made: list[dict[str, Any]]) -> bytes:
    content = "".join(json.dumps(row) + "\n" for row in made).encode()
    return gzip.compress(content) if name.endswith(".gz") else content


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    for name, made in (
        ("tickets.jsonl", rows("tickets", 1000)),  # enough of them are calibrated on for weights of rare labels
        ("tickets.valid.jsonl", rows("tickets", 40)),
        ("new-tickets.jsonl", rows("tickets", 30)),
        ("new-reviews.jsonl", rows("reviews", 31)),
        ("reviews.valid.jsonl.gz", rows("reviews", 42)),
        ("reviews.jsonl.gz", rows("reviews", 300)),
    ):
        (folder / name).write_bytes(written(name, made))
    (folder / "logs").mkdir()
    for name, made in (("clicks.jsonl.gz", clicks(400, 0)), ("today.jsonl", clicks(60, 1_000_000))):
        (folder / "logs" / name).write_bytes(written(name, made))
    make_tiny_artifact(folder / "model" / "starter")
    body = make_body(folder / "body", positions=128)
    mine, urgency, tonight = map(yaml.safe_load, blocks("README.md")[0])
    (folder / "mine.yaml").write_text(yaml.safe_dump(mine | {"body": str(body), "vocabulary": 100}), encoding="utf-8")
    (folder / "urgency.yaml").write_text(yaml.safe_dump(urgency), encoding="utf-8")
    (folder / "tonight.yaml").write_text(yaml.safe_dump(tonight), encoding="utf-8")
    return folder


def test_the_readmes_show_the_same_recipes_and_commands() -> None:
    (english, commands), (chinese, same) = (blocks(readme) for readme in READMES)
    assert commands == same
    for ours, theirs in zip(map(yaml.safe_load, english), map(yaml.safe_load, chinese), strict=True):
        assert {**ours, "card": None} == {**theirs, "card": None}


def test_the_commands_work_as_printed(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)
    said: dict[str, str] = {}
    for command in blocks("README.md")[1]:
        program, name, *arguments = shlex.split(command)
        assert program == "millrace"
        bounds = [word for part, words in BOUNDS.items() if part in command for word in words]
        result = CliRunner().invoke(main, [name, *arguments, *bounds])
        assert result.exit_code == 0, (command, result.output, result.stderr)
        said[name] = result.stdout
        if name == "evaluate":
            assert ("auc" if "click" in command or "conversion" in command else "accuracy") in result.stdout, command
    assert set(said) == {"train", "tune", "evaluate", "report", "active", "label"}

    mine = Artifact.load(Path("runs/mine/artifact")).manifest
    assert {name: (head["kind"], head["text"], head["field"]) for name, head in mine["heads"].items()} == {
        "sentiment": ("classes", ["text"], "mood"),
        "urgency": ("classes", ["subject", "body"], "prio"),
        "stars": ("score", ["text"], "rating"),
        "reason": ("classes", ["subject", "body"], "reason"),
    }
    late, broken = (mine["heads"]["reason"]["decision_weights"][label] for label in (1, 0))
    assert late == 1.0 <= broken
    assert [(found["task"], found["n"]) for found in mine["metrics"]] == [("sentiment", 42), ("urgency", 40)]
    assert "Sentiment and urgency of our own mails." in Path("runs/mine/artifact/README.md").read_text(encoding="utf-8")
    (task,) = json.loads(Path("report.json").read_text(encoding="utf-8"))["tasks"]
    assert (task["task"], task["n"]) == ("urgency", 40)
    assert {"subject", "body", "text", "guess"} <= set(json.loads(Path("to-label.jsonl").read_text().splitlines()[0]))
    assert json.loads(Path("sure.jsonl").read_text().splitlines()[0])["mood"] in MOODS
    assert "urgency" in Artifact.load(Path("runs/urgency/artifact")).manifest["heads"]

    stars = ["evaluate", "--artifact", "runs/mine/artifact", "--task", "stars", "--data", "reviews.valid.jsonl.gz"]
    assert json.loads(CliRunner().invoke(main, [*stars, "--json"]).stdout)["mae"] < 4
