"""The drawing of a replay: names in every script can be read, in the browser and in the picture."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tests.opinions import START_MS
from worker.alerts import timeline as timeline_module
from worker.alerts.backtest import Minute, Replay
from worker.alerts.timeline import write_timeline

FIRST = START_MS // 60_000
NAMES = ("category:水壶", "item:lamp")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The titles of the plots by the file they were drawn for."""
    titles: dict[str, list[str]] = {}
    save = Figure.savefig

    def keep(figure: Figure, to: Any, **options: Any) -> None:
        titles[options.get("format", "png")] = [axes.get_title(loc="left") for axes in figure.axes]
        save(figure, to, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return titles


def page_of(names: tuple[str, ...], folder: Path) -> str:
    minutes = {name: {FIRST + i: Minute(negative=1.0, total=5) for i in range(9 - n)} for n, name in enumerate(names)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture, page = write_timeline(
            Replay(alerts=[], counted=Counter(), minutes=minutes, subject_days=1.0), (), folder
        )
    assert picture.read_bytes().startswith(b"\x89PNG")
    return page.read_text(encoding="utf-8")


def test_the_browser_draws_the_names_itself(tmp_path: Path) -> None:
    svg = page_of(NAMES, tmp_path).partition("<svg")[2].partition("</svg>")[0]
    for name in NAMES:
        assert f"{name}</text>" in svg
    assert "sans-serif" in svg


def test_plots_are_numbered_in_the_picture_where_no_font_has_the_letters(
    tmp_path: Path, drawn: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline_module, "FONTS", ("No Such Font",))
    page = page_of(NAMES, tmp_path)
    assert drawn == {"png": ["1", "2"], "svg": ["1  category:水壶", "2  item:lamp"]}
    assert "by number" in page


def test_a_font_that_has_the_letters_writes_them_into_the_picture(
    tmp_path: Path, drawn: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A letter that the first font lacks, in a font that comes with matplotlib as well.
    monkeypatch.setattr(timeline_module, "FONTS", ("No Such Font", "DejaVu Sans Mono"))
    name = "item:⌒"
    assert "by number" not in page_of((name,), tmp_path)
    assert drawn == {"png": [name], "svg": [name]}
