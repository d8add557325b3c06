"""``millrace evaluate`` in full, for people: figures with intervals, the worst classes, slices with their gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

_NESTED: Final = {"intervals", "labels", "classes", "confusion", "reliability", "slices", "scope", "delays"}
_CLASSES_MAX: Final = 15


def assessment_view(figures: Mapping[str, Any]) -> Group:
    """The figures of `worker.tools.measure`, flat or in full. Confusion, reliability and the out-of-scope curve are
    in the JSON and in the report only."""
    flat = Table("figure", "value", "95 % interval")
    for name, value in figures.items():
        if name not in _NESTED:
            shown = f"{value:.4f}" if isinstance(value, float) else str(value)
            ends = figures.get("intervals", {}).get(name)
            flat.add_row(name, Text(shown), "" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}")
    parts = [flat]
    if "classes" in figures:
        parts.append(_classes(figures["classes"]))
    parts += [_slices(cut) for cut in figures.get("slices", [])]
    if "delays" in figures:
        parts.append(_delays(figures["delays"]))
    return Group(*parts)


def _classes(classes: list[dict[str, Any]]) -> Table:
    many = len(classes) > _CLASSES_MAX
    title = f"the worst {_CLASSES_MAX} of {len(classes)} classes" if many else "classes"
    table = Table("class", "rows", "guessed", "precision", "recall", "F1", title=title, title_justify="left")
    for found in sorted(classes, key=lambda c: float(c["f1"]))[:_CLASSES_MAX]:
        ends = found["intervals"]
        figures = (
            f"{found[name]:.3f} ({ends[name][0]:.2f} to {ends[name][1]:.2f})" for name in ("precision", "recall", "f1")
        )
        table.add_row(Text(found["label"]), str(found["support"]), str(found["guessed"]), *figures)
    return table


def _slices(cut: Mapping[str, Any]) -> Table:
    """Slices by the figure that they are compared in; one that it is not defined for has its rows only."""
    figure = cut["figure"]
    table = Table(Column(Text(cut["by"])), "rows", "AUC" if figure == "auc" else figure, "95 % interval", "gap", "")
    for part in cut["slices"]:
        cells = ["", "", ""]
        if part[figure] is not None:
            low, high = part["interval"]
            cells = [f"{part[figure]:.3f}", f"{low:.3f} to {high:.3f}", f"{part['gap']:+.3f}"]
        flag = "below the whole" if part["flagged"] else ""
        table.add_row(Text(part["value"]), str(part["n"]), *cells, flag, style="red" if flag else None)
    return table


def _delays(delays: list[dict[str, Any]]) -> Table:
    title = "clicks known later"
    table = Table("late, s", "told", "AUC", "log loss", "ECE", "predicted/observed", title=title, title_justify="left")
    for found in delays:
        told = "shown at once, the click later" if found["at_once"] else "one event, later"
        names = ("auc", "log_loss", "ece", "predicted_over_observed")
        figures = (f"{found[name]:.4f}" if name in found else "-" for name in names)
        table.add_row(f"{found['delay_s']:g}", told, *figures)
    return table
