"""The n-gram channel: what it computes, and that no row is judged by a machine that has seen it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from model.bag import GramBag, places
from model.encoder import EncoderConfig, build_encoder
from model.errors import DataError
from model.network import LinearColumns, Network, linear_weights
from model.scoring import Prepared
from model.training.linear import BagTarget, fit_bag, target_columns
from model.training.recipe import load_recipe
from model.training.workshop import furnish, new_network
from tests.toy_training import make_workshop

BUCKETS, ROWS = 512, 600
rng = np.random.default_rng(11)


def text(grams: list[int]) -> Prepared:
    """A text known by its n-grams alone; the ids make it distinct."""
    return Prepared(np.array([2, *grams, 3], np.int32), np.unique(np.array(grams, np.int32)))


def test_values_are_tf_idf_times_weights() -> None:
    kept = np.zeros(BUCKETS, bool)
    kept[[3, 10, 400]] = True
    weight, idf = rng.normal(size=(3, 2)).astype(np.float32), np.array([1.0, 2.0, 3.0], np.float32)
    scale, bias = np.array([2.0, 0.5], np.float32), np.array([0.1, -0.1], np.float32)
    bag = GramBag.quantised(kept, weight, scale, bias, idf)
    values = bag([text([3, 400, 7]), text([8]), text([10])]).numpy()
    weighed = (weight[0] * 1 + weight[2] * 3) / np.sqrt(10) * scale + bias
    np.testing.assert_allclose(values[0], weighed, atol=0.03)  # the int8 step
    np.testing.assert_allclose(values[1], bias, atol=1e-6)  # nothing known: the bias alone
    np.testing.assert_allclose(values[2], weight[1] * scale + bias, atol=0.03)


def test_places_number_the_kept_buckets() -> None:
    kept = rng.random(64) < 0.3
    place = places(np.packbits(kept))
    assert (place[~kept] == -1).all()
    assert place[kept].tolist() == list(range(kept.sum()))


def rows_of(noise: bool) -> tuple[list[Prepared], np.ndarray]:
    """Texts whose class is told by bucket 1, 2 or 3 (or, with noise, by nothing)."""
    labels = rng.integers(0, 3, ROWS)
    told = rng.integers(0, 3, ROWS) if noise else labels
    return [text([int(c) + 1, *rng.integers(10, BUCKETS, 5).tolist()]) for c in told], labels


def guesses(noise: bool) -> float:
    """Share of right out-of-fold guesses of a three-class target."""
    prepared, labels = rows_of(noise)
    target = BagTarget("mood", np.arange(ROWS), labels, (0, 1, 2))
    fit = fit_bag(prepared, np.ones(ROWS, bool), [target], buckets=BUCKETS, keep=BUCKETS, folds=3, c=1.0)
    assert fit.values.shape == (ROWS, 3)
    if noise:
        with torch.inference_mode():
            in_fold = fit.bag(prepared).numpy()
        assert (in_fold.argmax(1) == labels).mean() > 0.6
    return float((fit.values.argmax(1) == labels).mean())


def test_what_can_be_learned_is_learned_and_noise_is_not() -> None:
    assert guesses(noise=False) > 0.95
    assert guesses(noise=True) < 0.42  # in-fold, the five random buckets of a row would give far more


def test_no_row_is_judged_by_a_machine_that_has_seen_its_copy() -> None:
    prepared, labels = rows_of(noise=True)
    copies = [Prepared(p.ids[::-1].copy(), p.grams) for p in prepared]  # the same words as another text
    target = BagTarget("mood", np.arange(2 * ROWS), np.tile(labels, 2), (0, 1, 2))
    right = []
    for origin in (np.tile(np.arange(ROWS), 2), None):
        learn = np.ones(2 * ROWS, bool)
        settings = {"buckets": BUCKETS, "keep": BUCKETS, "folds": 3}
        fit = fit_bag([*prepared, *copies], learn, [target], **settings, c=1.0, origin=origin)
        right.append(float((fit.values.argmax(1) == np.tile(labels, 2)).mean()))
    assert right[0] < 0.42
    assert right[1] > 0.5  # as it would be without


def test_held_rows_and_strangers_get_the_whole_machines_values() -> None:
    prepared, labels = rows_of(noise=False)
    learn = np.arange(ROWS) % 4 != 0
    own = np.arange(0, ROWS - 100)
    target = BagTarget("mood", own, (labels[own] > 0).astype(np.int64), (0, 1))
    fit = fit_bag(prepared, learn, [target], buckets=BUCKETS, keep=256, folds=3, c=1.0)
    untouched = ~learn
    untouched[-100:] = True
    with torch.inference_mode():
        whole = fit.bag(prepared).numpy()
    np.testing.assert_allclose(fit.values[untouched], whole[untouched], atol=0.06, rtol=0.06)
    assert (np.sign(fit.values[:, 0]) == np.sign(labels - 0.5)).mean() > 0.95


def test_a_class_missing_from_the_learning_rows_keeps_its_column() -> None:
    prepared, labels = rows_of(noise=False)
    target = BagTarget("mood", np.arange(ROWS), np.minimum(labels, 1), (0, 1, 2))
    fit = fit_bag(prepared, np.ones(ROWS, bool), [target], buckets=BUCKETS, keep=256, folds=2, c=1.0)
    assert (fit.values.argmax(1) != 2).all()


@pytest.mark.parametrize("count", [2, 3])
def test_a_fold_that_leaves_one_class_to_learn_from_answers_that_one(count: int) -> None:
    prepared = [text([1, 20 + i]) for i in range(5)] + [text([2, 30])]
    classes = np.array([0] * 5 + [1])
    target = BagTarget("mood", np.arange(6), classes, tuple(range(count)))
    fit = fit_bag(prepared, np.ones(6, bool), [target], buckets=BUCKETS, keep=BUCKETS, folds=4, c=1.0)
    assert np.isfinite(fit.values).all()
    alone = fit.values[5, : target.columns]  # judged by a machine that has seen only the other class
    assert alone[0] < 0 if count == 2 else alone.argmax() == 0


def test_rows_without_a_common_ngram_are_refused_and_a_target_whose_rows_have_none_is_answered_alike() -> None:
    prepared, every = [text([20 + i]) for i in range(6)], np.ones(6, bool)
    target = BagTarget("mood", np.arange(6), np.array([0, 1] * 3), (0, 1))
    with pytest.raises(DataError, match="no n-gram stands in 2 texts"):
        fit_bag(prepared, every, [target], buckets=BUCKETS, keep=BUCKETS, folds=2, c=1.0)
    other = BagTarget("stars", np.arange(2), np.array([0, 1]), (0, 1))
    prepared = [*prepared[:2], *(text([1 + i % 2]) for i in range(4))]
    fit = fit_bag(prepared, every, [target, other], buckets=BUCKETS, keep=BUCKETS, folds=2, c=1.0)
    assert np.isfinite(fit.values).all()


def test_linear_weights_answer_as_the_machines_alone() -> None:
    config = EncoderConfig("packed", 50, 8, 1, 2, 8, 16)
    heads = {"mood": 3, "kind": 3, "other": 2, "part": 4, "pair": 4}
    network = Network(build_encoder(config), GramBag(64, 4, 8), heads)
    targets = [
        BagTarget(head, np.arange(0), np.arange(0), known)
        for head, known in (("mood", (0, 2)), ("kind", (0, 1, 2)), ("part", (0, 2, 3)), ("pair", (2, 1)))
    ]
    columns = target_columns(targets)
    assert [column.first for column in columns.values()] == [0, 1, 4, 7]
    weights = linear_weights(network, columns)
    encoded = torch.randn(5, network.hidden)
    grams = encoded[:, 8:].T
    none = 0 * grams[0]
    expected = {
        "mood": [-grams[0], none, grams[0]],
        "kind": [*grams[1:4]],
        "part": [grams[4], none, grams[5], grams[6]],
        "pair": [none, grams[7], -grams[7], none],
    }
    assert set(weights) == set(expected)
    for head, parts in expected.items():
        torch.testing.assert_close(encoded @ weights[head].T, torch.stack(parts, 1))


@pytest.mark.parametrize(("named", "known"), [(("negative", "positive"), (0, 2)), (("neutral", "positive"), (1, 2))])
def test_a_network_begins_with_what_the_machine_of_a_partial_data_set_says(
    tmp_path: Path, named: tuple[str, str], known: tuple[int, int]
) -> None:
    folder = make_workshop(tmp_path)
    rows = (folder / "mood.jsonl").read_text(encoding="utf-8")
    for old, new in zip(("negative", "positive"), named, strict=True):
        rows = rows.replace(f'"sentiment": "{old}"', f'"sentiment": "{new}"')
    (folder / "mood.jsonl").write_text(rows, encoding="utf-8")
    recipe = replace(load_recipe(folder / "recipe.yaml"), evaluation=[])
    shop = furnish(recipe, folder, tmp_path, Console(quiet=True))
    assert furnish(recipe, folder, tmp_path, Console(quiet=True)).columns == shop.columns  # read back
    assert shop.columns == {"sentiment": LinearColumns(0, known)}
    _, machines = new_network(recipe, shop, warm=False)
    assert shop.values is not None
    own = shop.corpus.labels[:, 0] >= 0
    guess = (shop.values[own] @ machines["sentiment"][:, -1:].numpy().T).argmax(1)
    assert (guess == shop.corpus.labels[own, 0]).mean() > 0.95
