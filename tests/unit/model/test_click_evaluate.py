"""Figures of click, purchase and conversion: what is judged, late outcomes, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from model.clicks.delay import Delay
from model.clicks.evaluate import evaluate_log
from model.clicks.figures import figures
from model.clicks.head import ClickHead
from model.clicks.log import settled
from model.clicks.rows import click_log
from model.errors import DataError
from model.null import NullScorer
from tests.click_head import Loaded, action_rows, click_rows, lines, small_head

SCORER = Loaded(small_head())


def bought_rows(n=400):
    """Impressions of which every other click is bought."""
    rows = click_rows(n, seed=8)
    return [row | {"purchased": int(row["clicked"] and i % 2)} for i, row in enumerate(rows)]


def test_conversion_is_what_serving_says_of_click_and_purchase_over_all_impressions():
    rows = bought_rows()
    found = evaluate_log(SCORER, "conversion", lines(rows[100:]), lines(rows[:100]))
    head, log = ClickHead.from_scorer(SCORER), click_log(lines(rows)).encoded(NullScorer())
    every = np.ones(len(rows), bool)
    p = settled(log, head) * head.purchase(log.features(head.scales_s, every))
    truth = np.array([float(row["clicked"] and row["purchased"]) for row in rows])
    assert found == {"task": "conversion", **figures(p[100:], truth[100:], log.users[100:])}
    assert found["n"] == 300


def test_impressions_whose_purchase_may_still_come_are_not_judged():
    rows = bought_rows()
    rows[-1] |= {"clicked": 1, "purchased": None}
    window_s = 7 * 86_400
    ripe = sum(row["ts"] <= rows[-1]["ts"] - window_s for row in rows)
    assert ripe == 0  # the log is shorter than a week
    with pytest.raises(DataError, match="no row has a known outcome for conversion"):
        evaluate_log(SCORER, "conversion", lines(rows))
    later = [row | {"ts": row["ts"] + window_s * (i >= 300)} for i, row in enumerate(rows)]
    ripe = sum(row["ts"] <= later[-1]["ts"] - window_s for row in later)
    assert 300 <= ripe < 400
    assert evaluate_log(SCORER, "conversion", lines(later))["n"] == ripe
    assert evaluate_log(SCORER, "click", lines(later))["n"] == len(rows)


def test_late_outcomes_are_told_in_both_ways_the_worker_may_hear_of_them():
    rows = lines(click_rows(600, seed=4, span_s=20_000))
    found = evaluate_log(SCORER, "click", rows[200:], rows[:200], (600.0, 3600.0))
    plain = evaluate_log(SCORER, "click", rows[200:], rows[:200])
    assert {name: value for name, value in found.items() if name != "delays"} == plain
    head, log = ClickHead.from_scorer(SCORER), click_log(rows).encoded(NullScorer())
    told = [(600, True), (600, False), (3600, True), (3600, False)]
    assert [(late["delay_s"], late["at_once"]) for late in found["delays"]] == told
    for late, (seconds, at_once) in zip(found["delays"], told, strict=True):
        p = settled(log, head, Delay(1000 * seconds, at_once))[200:]
        assert late["auc"] == figures(p, log.label[200:])["auc"]


@pytest.mark.parametrize(
    ("task", "rows", "delays_s", "message"),
    [
        ("click", action_rows(5), (), r"log\.jsonl:1: a shop action; click is measured on impressions"),
        ("conversion", action_rows(5), (), "conversion is measured on impressions"),
        ("purchase", action_rows(5), (600,), "delays are of impressions"),
        ("conversion", click_rows(20), (), "no row has a known outcome for conversion: say in `purchased`"),
        ("purchase", click_rows(20), (), "no row has a known outcome for purchase"),
        ("purchase", [{"user_id": 1, "item_id": 1, "day": 501, "action": "buy"}], (), "no row has a known outcome"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_what_it_needs(task, rows, delays_s, message):
    with pytest.raises(DataError, match=message):
        evaluate_log(NullScorer(), task, lines(rows), (), delays_s)
