"""Figures of click, purchase and conversion: what is judged, late outcomes, what is refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from model.clicks.delay import Delay
from model.clicks.evaluate import evaluate_log
from model.clicks.figures import figures, warmth_slices
from model.clicks.head import ClickHead
from model.clicks.log import settled
from model.clicks.rows import click_log
from model.errors import DataError
from model.null import NullScorer
from tests.click_head import Loaded, action_rows, click_rows, lines, small_head

SCORER = Loaded(small_head())


class Sampled(Loaded):
    """A scorer whose click head says of itself what ``section`` says."""

    def __init__(self, section):
        super().__init__(small_head())
        self._section = section

    def head(self, name):
        return self._section if name == "click" else {}


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


def test_the_history_is_weighed_as_the_log_that_the_head_was_fitted_on_and_the_data_are_every_impression():
    rows = lines(click_rows(400, seed=8))
    found = evaluate_log(Sampled({"negative_rate": 0.1}), "click", rows[200:], rows[:200])
    head, log = ClickHead.from_scorer(SCORER), click_log(rows).encoded(NullScorer())
    p = settled(log.standing_for(0.1, np.arange(400) < 200), head)[200:]
    assert found == {"task": "click", **figures(p, log.label[200:], log.users[200:])}
    plain = evaluate_log(SCORER, "click", rows[200:], rows[:200])
    assert found["log_loss"] != plain["log_loss"]
    every = evaluate_log(Sampled({"negative_rate": 1.0, "base_rate": 0.4}), "click", rows[200:], rows[:200])
    assert every == plain


def test_what_is_not_told_is_no_when_the_window_of_the_head_has_passed():
    rows = click_rows(400, seed=8)
    silent = [{name: value for name, value in row.items() if name != "clicked" or value} for row in rows]
    with pytest.raises(DataError, match="field 'clicked' is missing"):
        evaluate_log(SCORER, "click", lines(silent[200:]), lines(silent[:200]))
    ripe = sum(row["ts"] <= rows[-1]["ts"] - 3600 for row in rows)
    found = evaluate_log(Sampled({"window_s": 3600}), "click", lines(silent[200:]), lines(silent[:200]))
    assert found == evaluate_log(SCORER, "click", lines(rows[200:ripe]), lines(rows[:200]))
    assert found["n"] == ripe - 200 < 200
    bought = bought_rows()
    asked = [Sampled({"purchase_window_s": seconds}) for seconds in (7 * 86_400, 86_400)]
    bought[-1] |= {"clicked": 1, "purchased": None}
    with pytest.raises(DataError, match="no row has a known outcome for conversion"):
        evaluate_log(asked[0], "conversion", lines(bought))
    assert evaluate_log(asked[1], "conversion", lines(bought))["n"] > 200


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


def test_detail_slices_by_how_many_events_of_the_user_came_before():
    rows = click_rows(900, seed=6)
    plain = evaluate_log(SCORER, "click", lines(rows[300:]), lines(rows[:300]))
    found = evaluate_log(SCORER, "click", lines(rows[300:]), lines(rows[:300]), detail=True)
    (cut,) = found.pop("slices")
    assert found == plain
    head, log = ClickHead.from_scorer(SCORER), click_log(lines(rows)).encoded(NullScorer())
    p, seen, bands = settled(log, head), Counter(), {}
    for i, row in enumerate(rows):  # no two rows of one user have one time here
        count, seen[row["user_id"]] = seen[row["user_id"]], seen[row["user_id"]] + 1
        bands.setdefault("1–4" if 0 < count < 5 else "5–19" if 0 < count < 20 else "20 and more", []).append(i)
    assert [part["value"] for part in cut["slices"]] == ["1–4", "5–19", "20 and more"]
    for part in cut["slices"]:
        own = np.array([i for i in bands[part["value"]] if i >= 300])
        low, high = part.pop("interval")
        assert part == {
            "value": part["value"],
            **figures(p[own], log.label[own]),
            "gap": pytest.approx(part["auc"] - plain["auc"], abs=2e-5),
            "flagged": len(own) >= 50 and high < plain["auc"],
        }
        assert low < part["auc"] < high


def test_a_slice_of_worse_answers_is_flagged_and_one_of_one_outcome_says_nothing():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 600).astype(float)
    p = np.clip(0.5 + 0.4 * (truth - 0.5) + rng.normal(0, 0.2, 600), 0.01, 0.99)
    earlier = np.repeat([0, 2, 30], 200)
    p[:200] = rng.random(200)  # of new users the head knows nothing
    truth[200:400] = 1
    (cut,) = warmth_slices(p, truth, earlier)
    cold, one, warm = cut["slices"]
    assert [part["value"] for part in cut["slices"]] == ["none", "1–4", "20 and more"]
    assert (cold["flagged"], one["flagged"], warm["flagged"]) == (True, False, False)
    assert cold["gap"] < -0.1
    assert (one["auc"], one["interval"], one["gap"]) == (None, None, None)
    assert one["base_rate"] == 1
    assert warmth_slices(p, truth, np.zeros(600, np.int64)) == []


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
