"""Figures of the click head by hand, and the headline ranker on headlines whose words decide."""

from __future__ import annotations

import json

import numpy as np
import pytest

from model.clicks.figures import figures, ndcg, warmth_slices
from model.clicks.headlines import HeadlineTests, headline_figures
from model.errors import DataError
from model.null import NullScorer
from tests.click_head import lines


def test_figures_by_hand():
    p, truth = np.array([0.9, 0.1, 0.4, 0.6, 0.5]), np.array([1.0, 0, 1, 0, 1])
    found = figures(p, truth, np.array([7, 7, 3, 3, 5]))
    assert found["n"] == 5
    assert found["auc"] == pytest.approx(4 / 6, abs=1e-5)
    assert found["user_auc"] == pytest.approx(0.5)  # one user right, one wrong; the third has one outcome only
    assert found["ndcg"] == pytest.approx((1 + 1 / np.log2(3)) / 2, abs=1e-5)
    assert found["predicted_over_observed"] == pytest.approx(2.5 / 3, abs=1e-4)
    assert found["base_rate"] == pytest.approx(0.6)


def test_a_log_of_one_outcome_has_no_auc_and_no_slices():
    for outcome in (0.0, 1.0):
        found = figures(np.array([0.2, 0.1, 0.4]), np.full(3, outcome), np.array([1, 1, 2]))
        assert "auc" not in found
        assert found["base_rate"] == outcome
        json.dumps(found, allow_nan=False)
        assert warmth_slices(np.array([0.2, 0.1]), np.full(2, outcome), np.array([0, 30])) == []


def test_users_of_one_outcome_have_no_ranking():
    assert "user_auc" not in figures(np.array([0.5, 0.5]), np.array([1.0, 1.0]), np.array([1, 1]))


def test_ndcg_of_ties_is_the_mean_over_their_orders():
    assert ndcg(np.array([0.5, 0.5]), np.array([1, 0])) == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert ndcg(np.array([0.9, 0.5, 0.1]), np.array([1, 1, 0])) == 1
    assert np.isnan(ndcg(np.array([0.9]), np.array([0])))


class Words(NullScorer):
    """Encodes whether a text holds each of three words."""

    def prepare(self, texts):
        return list(texts)

    def encode(self, prepared):
        return np.array([[word in text for word in ("cat", "dog", "tax")] for text in prepared], np.float32)


def headline_tests(tests, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for test in range(tests):
        for word, rate in (("cat", 0.03), ("dog", 0.02), ("tax", 0.01)):
            clicks = int(rng.binomial(5000, rate))
            headline = f"a {word} of {test}"
            rows.append({"test_id": f"t{test}", "headline": headline, "impressions": 5000, "clicks": clicks})
    return HeadlineTests(lines(rows))


def test_the_headline_ranker_finds_the_words_that_decide():
    found = headline_figures(Words(), headline_tests(60, 0), headline_tests(20, 1))
    assert found["fitted_on"] == 180
    assert found["pairs"] == 60
    assert found["pair_accuracy"] > 0.95
    assert found["clear_pair_accuracy"] >= found["pair_accuracy"]


def test_headlines_without_a_pair_have_no_accuracy():
    alone = [{"test_id": f"t{i}", "headline": f"a cat of {i}", "impressions": 500, "clicks": i} for i in range(9)]
    found = headline_figures(Words(), headline_tests(60, 0), HeadlineTests(lines(alone)))
    assert found == {"fitted_on": 180, "pairs": 0, "clear_pairs": 0}
    assert "pair_accuracy" not in headline_figures(Words(), HeadlineTests(lines(alone)), HeadlineTests(lines(alone)))


def test_headline_rows_without_their_fields_are_refused():
    with pytest.raises(DataError, match=r"log\.jsonl:1: headline data need"):
        HeadlineTests(lines([{"headline": "x"}]))
