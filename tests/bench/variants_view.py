"""What bench-variants found, as tables for the terminal and as a picture. Differences are in points of a hundred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def table(result: Mapping[str, Any]) -> Any:
    """Costs and mean of every variant, and below them the tasks whose interval leaves zero out."""
    from rich.console import Group
    from rich.table import Table

    heads = ("variant", "trained", "seconds", "tokens/s", "MB", "mean", "difference", "by seed")
    shown = Table(*heads, title=f"{result['tokens']:.0f} tokens, {result['share']:.0%} of the labels, accuracy")
    tasks = Table("variant", "task", "difference", title="tasks that differ (one in twenty by chance)")
    for variant in result["variants"]:
        shown.add_row(
            variant["name"],
            f"{variant['parameters'] / 1e6:.2f} M",
            f"{variant['seconds']:.0f}",
            f"{variant['tokens_per_second']:,}",
            f"{variant['memory_mb']:,}",
            f"{variant['mean']:.3f}",
            _points(variant.get("difference")),
            " ".join(f"{100 * gap:+.1f}" for gap in variant.get("by_seed", [])),
        )
        for task, found in variant.get("differences", {}).items():
            if _style(found):
                tasks.add_row(f"{variant['name']} – {variant['against']}", task, _points(found))
    for name, why in result["failed"].items():
        shown.add_row(name, f"[red]failed: {why}[/red]")
    return Group(shown, tasks)


def _points(found: Sequence[float] | None) -> str:
    if found is None:
        return ""
    gap, low, high = (100 * value for value in found)
    style = _style(found) or "default"
    return f"[{style}]{gap:+.1f}[/{style}] ({low:+.1f} to {high:+.1f})"


def _style(found: Sequence[float]) -> str:
    """The colour of a difference whose interval leaves zero out; none of another."""
    return "green" if found[1] > 0 else "red" if found[2] < 0 else ""


def picture(result: Mapping[str, Any], path: Path) -> None:
    """Left the mean difference of each variant with its interval; right the time that a token takes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    entries = result["variants"][::-1]
    compared = [entry for entry in entries if "difference" in entry]
    figure, (gain, cost) = plt.subplots(1, 2, figsize=(10, 1.2 + 0.34 * len(entries)), layout="constrained")
    for at, entry in enumerate(compared):
        middle, low, high = (100 * value for value in entry["difference"])
        colour = {"green": "#2c7a4b", "red": "#b3261e", "": "#5b6470"}[_style(entry["difference"])]
        gain.plot([low, high], [at, at], color=colour, linewidth=2)
        gain.plot([middle], [at], "o", color=colour)
    gain.axvline(0, color="#b8b8b8", linewidth=1, zorder=0)
    gain.set_yticks(range(len(compared)), [f"{entry['name']} – {entry['against']}" for entry in compared])
    gain.set_xlabel("difference of the mean accuracy in points, 95 % over rows and seeds")
    taken_us = [1e6 / entry["tokens_per_second"] for entry in entries]
    cost.barh([entry["name"] for entry in entries], taken_us, color="#2a78b8")
    cost.set_xlabel("µs a token")
    figure.savefig(path, dpi=120)
    plt.close(figure)
