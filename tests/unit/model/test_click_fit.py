"""Fitting on a shop's own logs: sampled negatives, purchases of the impressions or none, outcomes that come late."""

from __future__ import annotations

import numpy as np
import pytest

from model.clicks.delay import Delay
from model.clicks.evaluate import evaluate_log
from model.clicks.features import features
from model.clicks.head import PURCHASE_RATE, SCALES_S, ClickHead
from model.clicks.rows import click_log
from model.state import States
from tests.click_head import Loaded, action_rows, click_rows, fitted, folded, lines

SPAN_S = 4_000_000


def rare_rows(n, seed, start_s=0):
    """Impressions of a shop where one of twenty is clicked."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        user, item = int(rng.integers(60)), int(rng.integers(40))
        clicked = int(rng.random() < 0.01 + 0.05 * (user % 3 == 0) + 0.05 * (user % 2 == item % 2))
        title = f"{('red', 'blue')[item % 2]} thing {item}"
        ts = start_s + int(rng.integers(SPAN_S))
        rows.append({"user_id": user, "item_id": item, "title": title, "clicked": clicked, "ts": ts})
    return sorted(rows, key=lambda row: row["ts"])


def bought_rows(n, seed, start_s=0):
    """Impressions that say what was bought: every fifth user buys most of what it clicks, the others little."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in click_rows(n, seed, SPAN_S):
        bought = row["clicked"] and rng.random() < (0.7 if row["user_id"] % 5 == 0 else 0.1)
        rows.append(row | {"ts": start_s + row["ts"], "purchased": int(bought)})
    return rows


def without_purchases(rows):
    return [{name: value for name, value in row.items() if name != "purchased"} for row in rows]


def test_a_log_with_a_tenth_of_its_negatives_is_corrected_to_the_whole():
    rng = np.random.default_rng(32)
    whole, later = rare_rows(8_000, 30), rare_rows(4_000, 31, SPAN_S)
    kept = [row for row in whole if row["clicked"] or rng.random() < 0.1]

    def ratio(rate):
        head = Loaded(fitted(kept, negative_rate=rate).tensors)
        return evaluate_log(head, "click", lines(later), lines(whole))["predicted_over_observed"]

    assert ratio(0.1) == pytest.approx(1, abs=0.15)
    assert ratio(1.0) > 2


def test_a_log_without_purchases_answers_them_by_counts_alone():
    found = fitted(click_rows(1_000))
    assert not any(name.startswith("click.purchase") for name in found.tensors)
    assert "purchase_held_out" not in found.section
    assert found.section["purchase_base_rate"] == PURCHASE_RATE
    head = ClickHead.from_tensors(found.tensors.__getitem__)
    states = folded(2, [(1, 0, (1, 1), (10, 9, 8), np.ones(64))])
    asked = features(states, States.empty(2, SCALES_S), np.zeros((2, 64), np.float32), np.zeros(2, int))
    np.testing.assert_array_equal(head.purchase(asked), ClickHead.counts_only().purchase(asked))
    assert head.purchase(asked)[1] > head.purchase(asked)[0]
    assert (head.click(asked) != ClickHead.counts_only().click(asked)).all()


def test_purchases_are_learned_from_impressions_that_say_them():
    whole, later = bought_rows(2_000, 0), bought_rows(1_000, 1, SPAN_S)
    own = fitted(whole)
    assert own.section["inputs"]["purchase"]
    plain = fitted(without_purchases(whole))
    scores = {}
    for name, found in (("own", own), ("plain", plain)):
        scores[name] = evaluate_log(Loaded(found.tensors), "conversion", lines(later), lines(whole))
    assert scores["own"]["n"] == 1_000
    assert scores["own"]["auc"] > 0.7
    assert scores["own"]["log_loss"] < scores["plain"]["log_loss"]
    assert scores["own"]["predicted_over_observed"] == pytest.approx(1, abs=0.25)
    bought = evaluate_log(Loaded(own.tensors), "purchase", lines(later), lines(whole))
    assert bought["n"] == sum(row["clicked"] for row in later)
    assert bought["auc"] > 0.7


def test_actions_go_before_the_purchases_of_impressions():
    both, actions = fitted(bought_rows(1_000, 0), action_rows()), fitted(click_rows(1_000), action_rows())
    assert both.section["purchase_base_rate"] == actions.section["purchase_base_rate"]
    np.testing.assert_array_equal(both.tensors["click.purchase.weight1"], actions.tensors["click.purchase.weight1"])


def test_a_head_is_fitted_on_what_is_known_by_then():
    rows = click_rows(1_000)
    late, at_once = fitted(rows, delay_s=3600), fitted(rows)
    assert late.section["delay_s"] == 3600
    assert (late.tensors["click.click.mean"] != at_once.tensors["click.click.mean"]).any()


def test_the_purchase_head_sees_no_purchase_before_it_is_known():
    rows = [{"user_id": 1, "item_id": i, "ts": ts, "clicked": 1, "purchased": 1} for i, ts in enumerate((0, 100, 5000))]
    log = click_log(lines(rows))
    every = np.ones(3, bool)
    seen = log.features(SCALES_S, every, delay=Delay(50_000, purchase_ms=3_600_000))
    bought = ClickHead.counts_only().purchase(seen)
    clicks_only = [{**row, "purchased": None} for row in rows]
    unbought = click_log(lines(clicks_only)).features(SCALES_S, every, delay=Delay(50_000))
    expected = ClickHead.counts_only().purchase(unbought)
    np.testing.assert_array_equal(bought[:2], expected[:2])
    assert bought[2] > expected[2]
