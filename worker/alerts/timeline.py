"""The timeline of a backtest, as a page and as a picture: what came, what was true, what was told, by subject."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Final

from schemas.scores import Alert
from worker.alerts.backtest import Minute, Replay
from worker.alerts.verdict import Truth
from worker.errors import ConfigError, InputError

SUBJECTS_DRAWN: Final = 12
"""Subjects in a drawing: those with most alerts and truths first."""
POINTS_DRAWN: Final = 600
"""Steps along a subject's time; minutes are joined to so many."""
FONTS: Final = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "PingFang HK",
    "Hiragino Sans GB",
    "Heiti TC",
    "STHeiti",
    "Microsoft YaHei",
    "SimHei",
    "Arial Unicode MS",
)
"""Where letters are looked for that matplotlib's own font lacks, in this order."""
_COLOURS: Final = {"opened": "tab:red", "worsening": "darkred", "improving": "tab:orange", "resolved": "tab:green"}
_STYLE: Final = """:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
div{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;white-space:nowrap}
td,th{padding:.2rem .7rem;border-bottom:1px solid #ccc;text-align:left}
svg{max-width:100%;height:auto}"""


def write_timeline(run: Replay, truths: Sequence[Truth], folder: Path) -> list[Path]:
    """Write ``timeline.png`` and ``timeline.html`` into a folder, made if need be; the paths.

    Raises `ConfigError` where matplotlib is missing, `InputError` where the folder cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError("drawing needs matplotlib: pip install 'millrace[plots]', or leave out --out") from error
    mpl.use("Agg")
    subjects = _chosen(run, truths)
    fonts = _fonts("".join(subjects))
    numbers = [str(number) for number in range(1, len(subjects) + 1)]
    picture, page = folder / "timeline.png", folder / "timeline.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # With text as text the browser draws the names, in fonts of its own.
        with mpl.rc_context({"font.family": fonts or ["sans-serif"], "svg.fonttype": "none"}):
            figure = _figure(run, truths, subjects)
            _entitle(figure, numbers if fonts is None else subjects)
            figure.savefig(picture, dpi=110)
            if fonts is None:
                _entitle(figure, [f"{number}  {name}" for number, name in zip(numbers, subjects, strict=True)])
            svg = _svg(figure)
        page.write_text(_page(run, svg, subjects, numbered=fonts is None), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from error
    return [picture, page]


def _chosen(run: Replay, truths: Sequence[Truth]) -> list[str]:
    told: dict[str, int] = {}
    for name in [each.subject for each in run.alerts if each.status == "opened"] + [each.subject for each in truths]:
        if name in run.minutes:
            told[name] = told.get(name, 0) + 1
    ranked = sorted(told, key=lambda name: (-told[name], name)) or sorted(
        run.minutes, key=lambda n: -len(run.minutes[n])
    )
    return ranked[:SUBJECTS_DRAWN]


def _figure(run: Replay, truths: Sequence[Truth], subjects: Sequence[str]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.0 + 1.7 * len(subjects)), layout="constrained")
    for axes, name in zip(figure.subplots(len(subjects), 1, squeeze=False)[:, 0], subjects, strict=True):
        _draw(axes, run.minutes[name])
        for truth in truths:
            if truth.subject == name:
                axes.axvspan(_time(truth.start_ms), _time(truth.end_ms), color="tab:blue", alpha=0.15, lw=0)
        for alert in run.alerts:
            if alert.subject == name:
                axes.axvline(_time(alert.window_end_ms), color=_COLOURS[alert.status], lw=1)
        axes.tick_params(labelsize=7)
    return figure


def _entitle(figure: Any, titles: Sequence[str]) -> None:
    for axes, title in zip(figure.axes, titles, strict=True):
        axes.set_title(title, fontsize=9, loc="left", parse_math=False)


def _fonts(text: str) -> list[str] | None:
    """Installed families that have all letters between them, matplotlib's own first; None where some are in none."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    families: list[str] = []
    missing = set(text)
    for family in ("sans-serif", *FONTS):
        try:
            file = findfont(FontProperties(family=[family]), fallback_to_default=False)
        except ValueError:  # not installed
            continue
        found = missing & {chr(code) for code in get_font(file).get_charmap()}
        if found or not families:  # the first writes the axes, too
            families.append(family)
        missing -= found
        if not missing:
            return families
    return None


def _draw(axes: Any, minutes: dict[int, Minute]) -> None:
    first, last = min(minutes), max(minutes)
    step = max(1, -(-(last - first + 1) // POINTS_DRAWN))
    bins = (last - first) // step + 1
    negative, total = [0.0] * bins, [0.0] * bins
    for minute, held in minutes.items():
        negative[(minute - first) // step] += held.negative / step
        total[(minute - first) // step] += held.total / step
    times = [_time((first + i * step) * 60_000) for i in range(bins)]
    axes.fill_between(times, total, step="post", color="lightgrey")
    axes.fill_between(times, negative, step="post", color="tab:red", alpha=0.6)
    axes.set_ylabel("a minute", fontsize=7)


def _time(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def _svg(figure: Any) -> str:
    text = io.StringIO()
    with warnings.catch_warnings():
        # Of letters that no font here has: widths are measured with these, but nothing is drawn.
        warnings.filterwarnings("ignore", r"Glyph \d+ |Matplotlib currently does not support ", UserWarning)
        figure.savefig(text, format="svg")
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def _page(run: Replay, svg: str, subjects: Sequence[str], *, numbered: bool) -> str:
    legend = (
        " In timeline.png subjects go by number: no font installed there has all their letters." if numbered else ""
    )
    rows = "".join(_row(each) for each in run.alerts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Alerts, replayed</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><h1>Alerts, replayed</h1>\n"
        f"<p>{sum(run.counted.values()):,} opinions on {len(run.minutes):,} subjects, {run.subject_days:,.1f}"
        f" subject-days; {len(subjects)} drawn. Grey: opinions; red: negative ones; blue: the truth; lines:"
        f" opened (red), worsening (dark red), improving (orange), resolved (green). Times are UTC.{legend}</p>\n"
        f"{svg}\n<h2>Every alert</h2><div><table><tr><th>time<th>subject<th>rule<th>status<th>severity<th>score"
        f"<th>negative share<th>expected<th>opinions</tr>\n{rows}</table></div></body></html>\n"
    )


def _row(alert: Alert) -> str:
    cells = (
        f"{_time(alert.window_end_ms):%Y-%m-%d %H:%M}",
        alert.subject,
        alert.rule,
        alert.status,
        alert.severity,
        f"{alert.score:.1f}",
        f"{alert.negative_share:.2f}",
        f"{alert.expected_share:.2f}",
        str(alert.total),
    )
    return "<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells) + "</tr>\n"
