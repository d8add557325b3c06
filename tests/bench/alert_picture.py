"""The benchmark's picture: what is found, against what it costs in false alarms, at every threshold."""

from __future__ import annotations

from pathlib import Path

from worker.alerts.verdict import Verdict

LEAST = 0.01
"""Where zero false alarms are drawn on the logarithmic axis."""


def draw(
    file: Path, ours: Verdict, curves: dict[str, list[Verdict]], grids: dict[str, list[float]], usual: dict[str, float]
) -> None:
    """Two panels over false alarms per 1000 subject-days: recall, and median delay. Baselines as curves over their
    thresholds, their usual setting filled; ours as a star; the targets as dashed lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for colour, (name, curve) in zip(("tab:blue", "tab:orange", "tab:green"), curves.items(), strict=True):
        costs = [max(each.false_alarms_per_1000_subject_days or 0.0, LEAST) for each in curve]
        at = grids[name].index(usual[name])
        for axes, values in (
            (left, [each.recall or 0.0 for each in curve]),
            (right, [each.median_delay_s if each.median_delay_s is not None else float("nan") for each in curve]),
        ):
            axes.plot(costs, values, "o-", color=colour, markerfacecolor="white", label=name.replace("_", " "))
            axes.plot(costs[at], values[at], "o", color=colour)
    cost = max(ours.false_alarms_per_1000_subject_days or 0.0, LEAST)
    left.plot(cost, ours.recall or 0.0, "*", color="tab:red", markersize=17, label="millrace")
    right.plot(cost, ours.median_delay_s or 0.0, "*", color="tab:red", markersize=17, label="millrace")
    for axes, target, title in ((left, 0.9, "recall of bursts"), (right, 90.0, "median delay, seconds of event time")):
        axes.set_xscale("log")
        axes.axvline(0.1, linestyle="--", linewidth=0.8, color="grey")
        axes.axhline(target, linestyle="--", linewidth=0.8, color="grey")
        axes.set_xlabel("false alarms per 1000 subject-days")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    left.set_ylim(0, 1.03)
    left.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
