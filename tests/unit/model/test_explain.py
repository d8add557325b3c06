"""Explanations: places in the original text, occlusion against scoring by hand, gradients that add up."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.artifact import Artifact
from model.assess.explain import PARTS_MAX, Explanation, explain, log_odds
from model.assess.gradients import integrated_gradients
from model.assess.spans import grouped, merged, origins, units, without
from model.encoder import EncoderConfig, build_encoder
from model.errors import DataError
from model.experts import ExpertsConfig
from model.golden import save_with_golden
from model.network import Network
from model.null import NullScorer
from model.text import gram_places, grams_of, normalise
from model.torch_scorer import TorchScorer, tensors_from
from tests.tiny_artifact import make_tiny_artifact

TEXTS = (
    "The order is LATE!! my refund, please 😡",
    "屏幕坏了，客服不喜欢。",
    "  ﬁne Cafe\u0301 的 iPhone的case\u200b don't ＯＫ",
    "good " * 300 + "屏幕",
)
texts = st.text(
    st.one_of(st.characters(), st.sampled_from("ab é 屏幕好!！．\u200b\u0301\ufe0f👍🏽ﬁİΣ각")), min_size=1, max_size=40
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> TorchScorer:
    return TorchScorer(folder, device="cpu")


def shown(text: str) -> list[str]:
    return [text[start:end] for start, end in units(text)]


def test_units_are_words_characters_marks_and_emoji() -> None:
    assert shown("Don't buy!! e-mail 3.5 kg") == ["Don't", "buy", "!!", "e-mail", "3.5", "kg"]
    assert shown("屏幕iPhone碎了，") == ["屏", "幕", "iPhone", "碎", "了", "，"]
    assert shown("👍🏽 ok👨‍👩‍👧 ❤️") == ["👍🏽", "ok", "👨‍👩‍👧", "❤️"]
    assert shown("Cafe\u0301 \u200b\x00") == ["Cafe\u0301"]


@given(texts)
def test_units_are_disjoint_in_order_and_hold_all_that_is_read(text: str) -> None:
    found = units(text)
    assert found == merged(found)
    assert all(normalise(text[start:end]) for start, end in found)
    rest = "".join(text[a:b] for (_, a), (b, _) in zip([(0, 0), *found], [*found, (len(text), 0)], strict=True))
    assert not normalise(rest).strip("\u200d\ufe0f\u20e3")


@given(texts, st.integers(1, 10))
def test_groups_cover_all_units_within_the_bound(text: str, most: int) -> None:
    found = units(text)
    parts = grouped(found, most)
    assert len(parts) <= most
    assert all(any(a <= start and end <= b for a, b in parts) for start, end in found)


@settings(max_examples=500)
@given(texts)
def test_every_normalised_character_has_its_place(scorer: TorchScorer, text: str) -> None:
    clean, pieces = scorer.codec.pieces(text)
    back = origins(text, scorer.codec)
    assert len(back) == len(clean)
    assert len(pieces) == scorer.prepare([text])[0].tokens
    for character, (start, end) in zip(clean, back, strict=True):
        assert 0 <= start <= end <= len(text)
        if character.isascii() and character.isalnum() and end - start < len(text):
            assert character in normalise(text[start:end], lower=True)


@given(texts)
def test_places_of_grams_are_those_of_the_channel(scorer: TorchScorer, text: str) -> None:
    codec = scorer.codec
    clean = codec.pieces(text)[0]
    places = gram_places(clean, codec.spec)
    assert sorted({bucket for bucket, _ in places}) == grams_of(clean, codec.spec).tolist()
    assert all(0 <= start < end <= len(clean) for _, spans in places for start, end in spans)


def test_a_very_long_text_is_read_at_both_ends(scorer: TorchScorer) -> None:
    text = "屏幕" + " x" * 20_000 + " 客服"
    clean, pieces = scorer.codec.pieces(text)
    back = origins(text, scorer.codec)
    assert len(pieces) == 64
    assert [text[slice(*back[i])] for i in (0, 1, len(clean) - 1)] == ["屏", "幕", "服"]
    assert back[-1] == (len(text) - 1, len(text))


def test_two_words_stay_apart_without_what_was_between_them() -> None:
    assert without("iPhone的case", (6, 7)) == "iPhone case"
    assert without("屏幕碎", (1, 2)) == "屏碎"
    assert normalise(without("not so good", (4, 6))) == "not good"


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=6))
def test_log_odds_undo_the_softmax(logits: list[float]) -> None:
    z = np.array(logits)
    p = np.exp(z - z.max())[None] / np.exp(z - z.max()).sum()
    expected = z[0] - (z[1:].max() + np.log(np.exp(z[1:] - z[1:].max()).sum()))
    assert log_odds(p, 0)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("head", ["sentiment", "intent.shop"])
def test_occlusion_is_the_exact_difference(scorer: TorchScorer, head: str, text: str) -> None:
    found = explain(scorer, head, text)
    whole = scorer.classify(head, scorer.encode(scorer.prepare([text])))
    column = list(scorer.labels[head]).index(found.label)
    assert found.probability == pytest.approx(whole[0].max(), abs=1e-6)
    assert found.logit == pytest.approx(log_odds(whole, column)[0], abs=1e-4)
    for part in found.parts[:: max(1, len(found.parts) // 5)]:
        assert text[part.start : part.end] == part.text
        left = scorer.classify(head, scorer.encode(scorer.prepare([without(text, (part.start, part.end))])))
        assert part.probability == pytest.approx(whole[0, column] - left[0, column], abs=1e-5)
        assert part.logit == pytest.approx(log_odds(whole, column)[0] - log_odds(left, column)[0], abs=1e-3)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("head", "label"), [("sentiment", "positive"), ("intent.shop", "get_refund"), ("stars", "1")])
def test_integrated_gradients_add_up(scorer: TorchScorer, head: str, label: str, text: str) -> None:
    found = explain(scorer, head, text, label=label, method="gradients")
    assert found.base_logit is not None
    way = found.logit - found.base_logit
    assert sum(part.logit for part in found.parts) == pytest.approx(way, rel=0.02, abs=2e-4)
    assert found.error is not None
    assert found.error < 0.02
    assert all(text[part.start : part.end] == part.text for part in found.parts)


def test_gradients_of_a_linear_model_are_exact(scorer: TorchScorer) -> None:
    """With the encoder's columns muted the log-odds of two classes are linear in the n-gram channel: every part's
    weight is then known, and the words that no n-gram is kept of weigh nothing."""
    text, head = "good order", "sentiment"
    layer, body = scorer.network.head(head), scorer.network.encoder.config.hidden
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.no_grad():
        layer.weight[:, :body] = 0
        layer.weight[2] = layer.weight[1]  # classes 1 and 2 alike: log-odds of 0 are z0 - z1 - log 2
        layer.bias.zero_()
    path = integrated_gradients(scorer, head, text, 0)
    layer.load_state_dict(before)
    bag = scorer.network.bag
    assert bag is not None
    buckets, values = bag.parts(scorer.prepare([text])[0])
    slope = (before["weight"][0] - before["weight"][1])[body:].numpy()
    expected = dict(zip(buckets.tolist(), (values @ slope).tolist(), strict=True))
    by_word = {(0, 4): 0.0, (5, 10): 0.0}
    for bucket, places in gram_places(text, scorer.codec.spec):
        for place in places:
            by_word[place] += expected.get(bucket, 0.0) / len(places)
    for place, weight in by_word.items():
        assert path.weights[place] == pytest.approx(weight, abs=1e-5)


FOREIGN = {"model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "dropout": 0.0}


@pytest.mark.parametrize(
    ("family", "experts"),
    [("packed", None), ("padded", None), ("packed", ExpertsConfig("mmoe", 8, 2, 0, ("sentiment",)))],
)
def test_gradients_add_up_in_any_encoder_without_n_grams(
    family: str, experts: ExpertsConfig | None, folder: Path, tmp_path: Path
) -> None:
    tiny = Artifact.load(folder)
    pieces = tiny.manifest["encoder"]["vocab_size"]
    foreign = FOREIGN | {"vocab_size": pieces, "max_position_embeddings": 64} if family == "padded" else {}
    torch.manual_seed(0)
    config = EncoderConfig(family, pieces, 16, 2, 2, 32, 64, foreign=foreign)
    heads = {name: len(head["labels"]) for name, head in tiny.manifest["heads"].items()}
    network = Network(build_encoder(config), None, heads, experts)
    space = {"space.mean": np.zeros(16, np.float32), "space.projection": np.eye(16, 64, dtype=np.float32)}
    manifest = tiny.manifest | {"encoder": config.to_dict(), "bag_columns": 0, "bag_grams": 0}
    if experts is not None:
        manifest |= {"experts": experts.to_dict()}
    other = tmp_path / "other"
    save_with_golden(other, manifest, tensors_from(network) | space, tiny.tokenizer_json)
    found = explain(TorchScorer(other, device="cpu"), "sentiment", TEXTS[1], "positive", method="gradients")
    assert found.base_logit is not None
    way = found.logit - found.base_logit
    assert sum(part.logit for part in found.parts) == pytest.approx(way, rel=0.02, abs=1e-5)
    assert any(part.logit for part in found.parts)


def test_parts_of_the_channel_add_up_to_it(scorer: TorchScorer) -> None:
    bag = scorer.network.bag
    assert bag is not None
    (prepared,) = scorer.prepare(["屏幕坏了 good order, please"])
    _, values = bag.parts(prepared)
    assert values.sum(0) == pytest.approx((bag([prepared])[0] - bag.bias).numpy(), abs=1e-5)


def test_a_long_text_is_explained_within_the_bound(scorer: TorchScorer) -> None:
    text = "屏幕 order " * 5000
    for method in ("occlusion", "gradients"):
        found = explain(scorer, "sentiment", text, method=method)
        assert len(found.parts) <= PARTS_MAX
        assert found.parts[0].start == 0
        assert found.parts[-1].end == len(text) - 1


def test_the_scorer_is_as_before(scorer: TorchScorer, folder: Path) -> None:
    explain(scorer, "sentiment", TEXTS[0], method="gradients")
    rows = scorer.encode(scorer.prepare(TEXTS))
    fresh = TorchScorer(folder, device="cpu")
    assert (rows == fresh.encode(fresh.prepare(TEXTS))).all()
    assert all(parameter.grad is None for parameter in scorer.network.parameters())


class Rare(NullScorer):
    def __init__(self, label: str) -> None:
        super().__init__()
        self._rare = label

    def head(self, name: str) -> Mapping[str, Any]:
        return {"decision_weights": [1.0 if label == self._rare else 1e-9 for label in self.labels[name]]}


@pytest.mark.parametrize("label", NullScorer.labels["sentiment"])
def test_it_is_the_answer_of_the_head_that_is_explained(label: str) -> None:
    assert explain(Rare(label), "sentiment", "broken, do not buy").label == label


def test_any_scorer_can_be_explained_by_occlusion_and_a_folder_by_its_path(folder: Path) -> None:
    found = explain(NullScorer(), "sentiment", "屏幕 broken", label="negative")
    assert isinstance(found, Explanation)
    assert json.loads(json.dumps(found.to_dict()))["parts"][2]["text"] == "broken"
    assert explain(folder, "sentiment", "good").label in ("negative", "neutral", "positive")
    with pytest.raises(DataError, match="torch artifact"):
        explain(NullScorer(), "sentiment", "good", method="gradients")


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"head": "mood", "text": "a"}, "no head 'mood'"),
        ({"head": "sentiment", "text": " \u200b "}, "empty"),
        ({"head": "sentiment", "text": "a", "label": "great"}, "label 'great' is unknown"),
        ({"head": "sentiment", "text": "a", "method": "shap"}, "method 'shap'"),
    ],
)
def test_bad_requests_say_what_is_known(scorer: TorchScorer, request_: dict[str, str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        explain(scorer, **request_)
