"""The starter artifact in the repository: whole, small enough, and sensible in both languages."""

from pathlib import Path

import numpy as np
import pytest

from model.artifact import Artifact
from model.assess.evaluate import evaluate_files
from model.golden import verify
from model.scoring import Scorer, load_scorer

STARTER = Path(__file__).parents[3] / "model" / "starter"
HEADS = {
    "sentiment": 3,
    "sentiment.finance": 3,
    "category": 10,
    "topic": 15,
    "stars": 5,
    "emotion": 6,
    "intent.shop": 27,
    "intent.banking": 77,
    "intent.general": 151,
}
SENTIMENTS = [
    ("This guitar stand broke after one day, complete waste of money.", "negative"),
    ("Terrible quality. It arrived broken and they refused to give my money back.", "negative"),
    ("I love this pedal, the sound is great and it is easy to use!", "positive"),
    ("Excellent strings, they stay in tune and sound wonderful.", "positive"),
    ("质量太差了，用了一天就坏了，千万别买。", "negative"),
    ("客服态度恶劣，退款也不给，非常失望。", "negative"),
    ("苹果很甜很新鲜，物流也快，会再来买的。", "positive"),
    ("酒店房间干净，服务热情，下次还住这里。", "positive"),
]
INTENTS = [
    ("I want to cancel my order please", "cancel_order"),
    ("where is my package? I need to track my order", "track_order"),
    ("I forgot my password and cannot log in", "recover_password"),
    ("how can I get a refund of my money", "get_refund"),
    ("能不能把我昨晚拍的那单取消掉呀", "cancel_order"),
    ("我买的东西怎么还没到，物流停了好几天", "track_order"),
    ("登录的密码我给忘了", "recover_password"),
    ("让人工来跟我说", "contact_human_agent"),
]


@pytest.fixture(scope="module")
def starter() -> Scorer:
    return load_scorer(STARTER, device="cpu")


def test_it_is_whole_and_at_most_forty_megabytes() -> None:
    assert verify(STARTER, device="cpu") <= 0.02
    assert sum(path.stat().st_size for path in STARTER.iterdir()) <= 40_000_000
    card = (STARTER / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("Licences", "Limits", "Figures"))


def test_its_heads_are_the_promised_ones(starter: Scorer) -> None:
    assert {head: len(labels) for head, labels in starter.labels.items()} == HEADS
    for head in HEADS:
        assert (starter.threshold(head) is not None) == head.startswith("intent.")


def test_its_sentiments_are_sensible(starter: Scorer) -> None:
    probabilities = starter.classify("sentiment", starter.encode(starter.prepare([text for text, _ in SENTIMENTS])))
    guesses = [starter.labels["sentiment"][i] for i in probabilities.argmax(1)]
    assert guesses == [label for _, label in SENTIMENTS]


def test_its_shop_intents_are_sensible(starter: Scorer) -> None:
    probabilities = starter.classify("intent.shop", starter.encode(starter.prepare([text for text, _ in INTENTS])))
    guesses = [starter.labels["intent.shop"][i] for i in probabilities.argmax(1)]
    assert sum(a == b for a, (_, b) in zip(guesses, INTENTS, strict=True)) >= 7


def test_like_titles_lie_closer_than_unlike_ones(starter: Scorer) -> None:
    texts = ["red running shoes", "blue trail running shoes", "electric rice cooker", "运动跑鞋", "电饭煲"]
    vectors = starter.vectors(starter.encode(starter.prepare(texts)))
    near = vectors @ vectors.T
    assert near[0, 1] > near[0, 2]
    assert np.isfinite(near).all()


def test_its_recorded_figures_hold(starter: Scorer, data_dir: Path) -> None:
    recorded = {m["task"]: m for m in Artifact.load(STARTER).manifest["metrics"]}["intent.banking"]
    figures = evaluate_files(starter, "intent.banking", [data_dir / "banking77.valid.jsonl.gz"])
    assert figures["accuracy"] == pytest.approx(recorded["accuracy"], abs=0.003)
