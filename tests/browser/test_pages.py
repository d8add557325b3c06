"""The pages that we write, in a real browser: they stand alone, fit a phone, can be read by day, night and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from playwright.sync_api import Browser, Page, sync_playwright

from tests.servers import chromium_program, or_skip
from tests.unit.model.test_report import data, folder, made, trials  # noqa: F401 fixtures
from tests.unit.worker.alerts.test_backtest import history, truth  # noqa: F401 fixtures
from worker.cli.app import main

CONTRAST_MIN = 4.5
"""Of text of ordinary size, by WCAG 2.2 level AA."""
# Every piece of text that is seen, with its ratio of luminances to the nearest background behind it.
CONTRASTS = """() => {
  const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length == 3 || colour[3] > 0) return colour;
    }
    const able = getComputedStyle(document.documentElement).colorScheme.includes('dark');
    return able && matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255];
  };
  return [...document.body.querySelectorAll('*:not(svg *)')]
    .filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
    .map(e => {
      const [a, b] = [light(numbers(getComputedStyle(e).color)), light(behind(e))];
      return [e.textContent.trim().slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}"""
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with or_skip():
        program = chromium_program()
    with sync_playwright() as playwright:
        # Its sandbox wants a user of its own, which a container does not give it; the pages are ours.
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@dataclass
class Opened:
    """A page as a reader has it before them, and what the browser was asked for and complained of meanwhile."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def opened(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """The page that the test's parameters name, at their width and colours."""
    name, width, scheme = request.param
    path: Path = request.getfixturevalue(name)
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    found = Opened(context.new_page())
    found.page.on("request", lambda asked: found.requests.append(asked.url))
    found.page.on("console", lambda message: found.complaints.append(message.text))
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.goto(path.as_uri())
    yield found
    context.close()


@pytest.fixture
def report(made: tuple[Any, Path]) -> Path:  # noqa: F811
    return made[1]


@pytest.fixture
def timeline(history: Path, truth: Path, tmp_path: Path) -> Path:  # noqa: F811
    asked = ["alerts", "backtest", str(history), "--truth", str(truth), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(main, asked).exit_code == 0
    return tmp_path / "out" / "timeline.html"


EVERYWHERE = [*product(("report", "timeline"), (360, 1280), ("light", "dark"))]


@pytest.mark.parametrize("opened", EVERYWHERE, indirect=True, ids=lambda each: "-".join(map(str, each)))
def test_a_page_stands_alone_fits_and_can_be_read(opened: Opened) -> None:
    assert opened.requests == [opened.page.url]
    assert opened.complaints == []
    assert opened.page.evaluate(SIDEWAYS) <= 0, "the page, not a table in it, scrolls sideways"
    contrasts = opened.page.evaluate(CONTRASTS)
    assert len(contrasts) > 20
    assert [(text, round(ratio, 2)) for text, ratio in contrasts if ratio < CONTRAST_MIN] == []


@pytest.mark.parametrize("opened", [("report", 1280, "light")], indirect=True)
def test_the_reports_links_lead_to_its_sections_and_folded_parts_open(opened: Opened) -> None:
    page = opened.page
    links = page.locator("nav a")
    assert links.count() >= 3
    for i in range(links.count()):
        links.nth(i).click()
        section = page.locator(f"#{page.url.partition('#')[2]}")
        assert section.is_visible()
        top = section.bounding_box()
        assert top is not None
        assert -1 < top["y"] < 800
    folded = page.locator("details").filter(has=page.locator("table")).first
    inside = folded.locator("table")
    assert not inside.is_visible()
    folded.locator("summary").click()
    assert inside.is_visible()


@pytest.mark.parametrize("opened", [("report", 1280, "dark")], indirect=True)
def test_on_paper_the_report_is_light_and_nothing_is_folded_away(opened: Opened) -> None:
    page = opened.page
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    hidden = "[...document.querySelectorAll('details table')].filter(e => !e.getClientRects().length).length"
    assert page.evaluate(hidden) == 0
    assert [(text, ratio) for text, ratio in page.evaluate(CONTRASTS) if ratio < CONTRAST_MIN] == []
