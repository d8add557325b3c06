"""The demo's screen: everything that matters is on it, it fits, and no terminal means plain lines."""

import re
from itertools import islice
from xml.etree import ElementTree

import msgspec
import pytest
from rich.console import Console

from schemas.topics import SCORES_SENTIMENT
from tests.unit.worker.demo.test_meter import answer, opinion
from worker.demo.catalogue import Catalogue
from worker.demo.meter import OPINIONS, Meter
from worker.demo.shop import Shop
from worker.demo.view import STREAMS, View
from worker.demo.view_text import spark


class Scraped:
    """What a scraper would know of a busy worker."""

    redis_keys = 321

    def samples(self, role):
        return {"millrace_worker_state_reads_total{result=known}": 3.0, "millrace_worker_state_reads_total": 1.0}

    def value(self, role, name):
        known = {"millrace_worker_cache_hits_total": 60.0, "millrace_worker_cache_misses_total": 40.0}
        return known.get(name, 7.0)

    def per_second(self, role, name):
        return 0.87


class Silent:
    """What it knows before any role has answered."""

    redis_keys = None

    def samples(self, role):
        return {}

    def value(self, role, name):
        return None

    def per_second(self, role, name):
        return None


@pytest.fixture
def catalogue():
    return Catalogue.load()


@pytest.fixture
def meter(catalogue):
    meter = Meter()
    for i, sent in enumerate(islice(Shop(1, catalogue).events(1_000_000, 1000.0), 300)):
        meter.sent(sent, i / 60)
        answer(meter, sent, i / 60 + 0.05)
    subject = f"item:{catalogue.surge.item_id}"
    for _ in range(10):
        meter.received(OPINIONS, b"k", opinion(subject, 0.9, meter.event_time_ms), 5.0)
    return meter


def drawn(view, width, height):
    console = Console(width=width, height=height, force_terminal=False)
    view._take_samples()
    with console.capture() as captured:
        console.print(view.screen("running", 6.0, height))
    return captured.get().rstrip("\n").splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 35), (160, 50)])
def test_it_fits_and_says_what_matters(meter, catalogue, width, height):
    lines = drawn(View(meter, Scraped(), catalogue, "/models/starter", quiet=False), width, height)
    text = "\n".join(lines)
    assert len(lines) <= height
    for expected in ("running", "model starter", "encoder 87%", "cache 60%", "states known 75%", "keys 321", "90%"):
        assert expected in text
    for name, _, _, scores in STREAMS:
        assert any(line.startswith(f"{name} > {scores}") and " 50 " in line for line in lines)
    assert catalogue.surge.titles["zh"] in text


def test_nothing_known_yet_is_no_error(catalogue):
    lines = drawn(View(Meter(), Silent(), catalogue, "null", quiet=False), 80, 24)
    assert any("encoder -" in line for line in lines)


def test_texts_cannot_steer_the_terminal(meter, catalogue):
    view = View(meter, Silent(), catalogue, "null", quiet=False)
    sample = meter.samples[SCORES_SENTIMENT][-1]
    event = msgspec.structs.replace(sample.sent.event, text="\x1b[2Jgone [bold]\n")
    view._shown[SCORES_SENTIMENT].append(
        msgspec.structs.replace(sample, sent=msgspec.structs.replace(sample.sent, event=event))
    )
    lines = drawn(view, 100, 35)
    assert any("[2Jgone [bold]" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_without_a_terminal_it_is_one_line(meter, catalogue, capsys):
    view = View(meter, Scraped(), catalogue, "null", quiet=False)
    view._refreshed_s -= 60
    with view:
        view.refresh("running")
        view.refresh("running")
    (line,) = capsys.readouterr().out.splitlines()
    assert "300 events" in line
    assert "latency p50 50" in line


def test_a_picture_is_the_last_screen_and_asks_nobody_for_anything(meter, catalogue, tmp_path):
    file = tmp_path / "demo.svg"
    view = View(meter, Scraped(), catalogue, "/models/starter", quiet=True, picture=file)
    view._refreshed_s -= 60
    view._sampled_s -= 60
    with view:
        view.refresh("running")
    drawing = ElementTree.parse(file).getroot()  # noqa: S314 our own
    said = " ".join("".join(drawing.itertext()).replace("\xa0", " ").split())
    for expected in ("running", "model starter", "clicks > scores.ctr", "encoder 87%", catalogue.surge.titles["zh"]):
        assert expected in said
    wide = [
        each for each in drawing.iter() if re.search(r"[\u4e00-\u9fff]", each.text or "") and each.tag.endswith("text")
    ]
    assert wide
    assert not any("textLength" in each.attrib for each in wide), "no character over another"
    assert re.findall(r"https?://[^\s\"')]+", file.read_text()) == ["http://www.w3.org/2000/svg", RICH]


RICH = "https://www.textualize.io"
"""Named in a comment that nothing reads."""


def test_a_spark_has_a_bar_for_every_number():
    assert spark([0, 1, 2, 7]) == "▁▂▃█"
    assert spark([3, 3]) == "▁▁"
