"""``millrace explain``: one text, and which of its parts moved a head's answer, for people."""

from __future__ import annotations

from typing import Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from model.assess.explain import Explanation, Part, explain
from worker.config import ModelConfig
from worker.errors import InputError
from worker.tools.one_text import heads_of, load

_STRONGEST: Final = 8
_SHADES: Final = ((0.66, "bold "), (0.2, ""), (0.05, "dim "))  # from this share of the strongest weight on


def explain_text(
    model: ModelConfig,
    text: str,
    task: str,
    *,
    label: str | None = None,
    method: str = "occlusion",
    artifact: str | None = None,
) -> Explanation:
    """The parts of ``text`` weighed for ``label`` (by default the likeliest) of the head ``task``.

    Raises `InputError` for a task that names no one head, `ModelLoadError` for an artifact that cannot be used, and
    DataError as ``model.assess.explain.explain`` does.
    """
    scorer = load(model, artifact)
    heads = heads_of(scorer, task)
    if len(heads) != 1:
        known = ", ".join(heads or sorted(scorer.labels))
        raise InputError(f"--task {task}: one head at a time is explained; this model has {known}")
    return explain(scorer, heads[0], text, label=label, method=method)


def explanation_view(found: Explanation) -> Group:
    """The text in colour (red lowers the label, green raises it), then its strongest parts."""
    title = Text.assemble(
        (found.head, "bold"),
        ": ",
        (found.label, "bold"),
        f" {found.probability:.3f}   ",
        ("raises", "green"),
        " ",
        ("lowers", "red"),
    )
    if found.error is not None and found.error > 0.02:
        title.append(f"   the weights miss their sum by {found.error:.1%}", style="yellow")
    table = Table("part", "log-odds", title="strongest parts", title_justify="left")
    if found.method == "occlusion":
        table.add_column("probability")
    for part in sorted(found.parts, key=lambda part: -abs(part.logit))[:_STRONGEST]:
        cells = [f"{part.logit:+.3f}"] + ([] if part.probability is None else [f"{part.probability:+.3f}"])
        table.add_row(Text(part.text), *(Text(cell, style=_hue(part)) for cell in cells))
    return Group(title, coloured(found), table)


def coloured(found: Explanation) -> Text:
    """The whole text, each part coloured by its weight beside the strongest one's."""
    text = Text(found.text)
    strongest = max(abs(part.logit) for part in found.parts)
    for part in found.parts:
        share = abs(part.logit) / strongest if strongest else 0.0
        shade = next((shade for least, shade in _SHADES if share >= least), None)
        if shade is not None:
            text.stylize(f"{shade}{_hue(part)}", part.start, part.end)
    return text


def _hue(part: Part) -> str:
    return "green" if part.logit > 0 else "red"
