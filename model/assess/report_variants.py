"""The recipe's options beside the recipe as it is: what `make bench-variants` wrote, read and as a part of the page."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeGuard

from model.assess.report_tasks import table
from model.errors import DataError

_NUMBERS = ("parameters", "seconds", "tokens_per_second", "memory_mb", "mean")


def read_variants(path: Path) -> dict[str, Any]:
    """A JSON object with ``tokens`` of each training, ``share`` of the labels, ``metric`` and the list ``variants``.

    Each variant: ``name``; ``parameters`` trained, ``seconds``, ``tokens_per_second``, ``memory_mb``, ``mean`` of its
    ``tasks``, figures by name; where it is compared with another, ``against``, ``difference`` (the mean's, with both
    ends of its interval) and ``differences`` by task. Raises DataError naming the variant at fault.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no readable JSON ({error})") from error
    found = content.get("variants") if isinstance(content, dict) else None
    if not isinstance(found, list) or not found or not all(_is_number(content.get(n)) for n in ("tokens", "share")):
        raise DataError(f"{path}: an object with numbers `tokens`, `share` and the list `variants` is expected")
    for i, variant in enumerate(found):
        if not isinstance(variant, dict) or not isinstance(variant.get("name"), str):
            raise DataError(f"{path}: variant {i} needs a name")
        numbers = all(_is_number(variant.get(name)) for name in _NUMBERS)
        if not numbers or not _is_figures(variant.get("tasks")) or not _is_compared(variant):
            raise DataError(
                f"{path}: variant {variant['name']} needs numbers {', '.join(_NUMBERS)} and tasks; with `against`,"
                " a difference and differences by task, each with both ends of its interval"
            )
    return {name: content.get(name) for name in ("tokens", "share", "metric", "variants")}


def variants_section(content: Mapping[str, Any] | None) -> str:
    """The part of the page on ``read_variants``'s content; nothing without it."""
    if not content:
        return ""
    found = content["variants"]
    tasks = list(dict.fromkeys(task for variant in found for task in variant["tasks"]))
    costs = [
        [
            f'{escape(variant["name"])}<span class="under">{escape(str(variant.get("what", "")))}</span>',
            f"{variant['parameters']:,}",
            f"{variant['seconds']:,.0f}",
            f"{variant['tokens_per_second']:,.0f}",
            f"{variant['memory_mb']:,.0f}",
            f"{variant['mean']:.4f}",
            _gap(variant.get("difference")),
            escape(str(variant.get("against", ""))),
        ]
        for variant in found
    ]
    heads = ["variant", "parameters trained", "seconds", "tokens/s", "MB", f"mean {content['metric']}"]
    rows = [[escape(v["name"]), *(_task(v, task) for task in tasks)] for v in found]
    return (
        f'<h2 id="variants">Variants</h2><p class="note">Each trained on {content["tokens"]:,.0f} tokens of '
        f"{content['share']:.0%} of the labels, from the same first weights, and judged on the same valid rows; MB are "
        "what training took beside the network. A difference bears an interval over rows and seeds, and is coloured "
        "where that leaves zero out: of many tasks one in twenty does so by chance.</p>"
        + table([*heads, "difference", "to"], costs)
        + "<details><summary>By task</summary>"
        + table(["variant", *tasks], rows)
        + "</details>"
    )


def _task(variant: Mapping[str, Any], task: str) -> str:
    if task not in variant["tasks"]:
        return ""
    gap = variant.get("differences", {}).get(task)
    return f'{variant["tasks"][task]:.3f}<span class="under">{_gap(gap)}</span>'


def _gap(found: Sequence[float] | None) -> str:
    if found is None:
        return ""
    gap, low, high = found
    kind = "good" if low > 0 else "bad" if high < 0 else ""
    return f'<span class="{kind}">{gap:+.4f}</span> <span class="range">{low:+.4f} to {high:+.4f}</span>'


def _is_compared(variant: Mapping[str, Any]) -> bool:
    """Whether it is compared with nothing, or wholly."""
    if "against" not in variant:
        return True
    by_task = variant.get("differences")
    gaps = [variant.get("difference"), *(by_task.values() if isinstance(by_task, Mapping) else [None])]
    return all(isinstance(gap, list) and len(gap) == 3 and all(map(_is_number, gap)) for gap in gaps)


def _is_figures(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(map(_is_number, value.values()))


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
