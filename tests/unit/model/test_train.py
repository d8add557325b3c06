"""Training end to end on a toy that can be learned, and on again after it was stopped."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from model import train as training
from model.artifact import Artifact
from model.errors import DataError, ModelError
from model.evaluate import evaluate_texts
from model.golden import verify
from model.scoring import load_scorer
from model.trainer import Trainer
from model.vocabulary import SPECIAL, wordpiece_tokenizer
from tests.tiny_artifact import CHINESE, LETTERS

RECIPE = """
name: toy
seed: 3
body: BODY
vocabulary: 200
text: {max_tokens: 24, gram_buckets: 4096}
bag: {keep: 512, folds: 2, c: 1.0, targets: [[mood, sentiment]]}
training: {body_lr: 1.0e-3, embedding_lr: 5.0e-3, head_lr: 1.0e-2, batch_tokens: 200, passes_max: 6}
calibration_share: 0.2
heads: {sentiment: {labels: [negative, neutral, positive]}, intent.shop: {threshold: true}}
datasets:
  - {name: mood, file: mood.jsonl, labels: {sentiment: sentiment}, partial: [sentiment]}
  - {name: shop, file: shop.jsonl, labels: {intent.shop: intent}, outside: {intent.shop: [refund, track]}}
space: [{file: mood.jsonl, text: [text], rows: 100}]
evaluation: [{task: sentiment, file: mood.jsonl}, {task: sentiment, file: absent.jsonl}]
"""
WORDS = {"negative": "坏 差 bad", "positive": "好 喜欢 good", "refund": "退款 refund", "track": "快递 order"}
FILLER = ["我", "的", "了", "在", "是", "the", "a", "my", "it"]


def sentence(label: str, rng: random.Random) -> str:
    words = [rng.choice(WORDS[label].split()), *rng.choices(FILLER, k=5)]
    rng.shuffle(words)
    return " ".join(words)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """So small a model is slower on two threads, and sums come out in one order only on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, two data files and a tiny body."""
    folder, rng = tmp_path_factory.mktemp("workshop"), random.Random(0)
    for name, field, labels in (
        ("mood", "sentiment", ("negative", "positive")),
        ("shop", "intent", ("refund", "track")),
    ):
        rows = [{"text": sentence(label, rng), field: label} for label in labels * 150]
        content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / f"{name}.jsonl").write_text(content, encoding="utf-8")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=120, max_position_embeddings=32, **shape)).save_pretrained(folder / "body")
    tokenizer = Tokenizer.from_str(wordpiece_tokenizer([*LETTERS, *CHINESE], lower=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0]).save_pretrained(folder / "body")
    (folder / "recipe.yaml").write_text(RECIPE.replace("BODY", str(folder / "body")), encoding="utf-8")
    return folder


def run(workshop: Path, out: Path, *, resume: bool = False) -> Path:
    out.mkdir(exist_ok=True)
    # The plan is given, not measured: the same steps on any machine.
    (out / "plan.json").write_text(json.dumps({"half": False, "tokens": 9000}))
    recipe = workshop / "recipe.yaml"
    return training.train(recipe, workshop, out, minutes=0.1, resume=resume, console=Console(quiet=True))


def test_a_separable_toy_is_learned(workshop: Path, tmp_path: Path) -> None:
    folder = run(workshop, tmp_path)
    assert verify(folder, device="cpu") < 0.01
    scorer, rng = load_scorer(folder, device="cpu"), random.Random(99)
    for head, labels in (("sentiment", ("negative", "positive")), ("intent.shop", ("refund", "track"))):
        truth = list(labels) * 50
        figures = evaluate_texts(scorer, head, [sentence(label, rng) for label in truth], truth)
        assert figures["accuracy"] >= 0.95, (head, figures)
    manifest = Artifact.load(folder).manifest
    assert [m["task"] for m in manifest["metrics"]] == ["sentiment"]
    assert set(manifest["data"]) == {"mood.jsonl", "shop.jsonl"}
    with pytest.raises(ModelError, match="--resume"):
        run(workshop, tmp_path)


def test_a_stopped_run_resumes_to_the_same_weights(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Artifact.load(run(workshop, tmp_path / "whole"))
    learn = Trainer.learn

    def stop_at_twenty(self: Trainer, rows: np.ndarray, step: int) -> dict[str, float]:
        if step == 20:
            raise KeyboardInterrupt
        return learn(self, rows, step)

    monkeypatch.setattr(Trainer, "learn", stop_at_twenty)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        run(workshop, tmp_path / "stopped")
    monkeypatch.setattr(Trainer, "learn", learn)
    resumed = Artifact.load(run(workshop, tmp_path / "stopped", resume=True))
    learned = [name for name in whole.tensors if not name.startswith("space.")]  # that follows from the rest
    for name in learned:
        value = whole.tensors[name]
        # Half-precision neighbours: the order of float sums follows memory alignment, which no seed fixes.
        np.testing.assert_allclose(resumed.tensors[name], value, rtol=2e-3, atol=1e-5, err_msg=name)


def test_a_damaged_checkpoint_is_refused(workshop: Path, tmp_path: Path) -> None:
    run(workshop, tmp_path)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ModelError, match="no readable checkpoint"):
        run(workshop, tmp_path, resume=True)


def test_a_malformed_file_is_refused_before_training(workshop: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("mood.jsonl", "shop.jsonl"):
        (data / name).write_bytes((workshop / name).read_bytes() + b'\n{"text": 5}\n')
    with pytest.raises(DataError, match=r"mood\.jsonl:301"):
        training.train(
            workshop / "recipe.yaml", data, tmp_path / "out", minutes=1, resume=False, console=Console(quiet=True)
        )
    assert training.main(["--recipe", "none.yaml", "--data", str(data), "--out", str(tmp_path / "o")]) == 2


def test_measuring_the_rate_leaves_the_weights_alone(workshop: Path, tmp_path: Path) -> None:
    first = run(workshop, tmp_path / "given")
    (tmp_path / "measured").mkdir()
    recipe = workshop / "recipe.yaml"
    training.train(recipe, workshop, tmp_path / "measured", minutes=0.005, resume=False, console=Console(quiet=True))
    plan = json.loads((tmp_path / "measured" / "plan.json").read_text())
    assert plan["tokens"] > 0
    assert set(plan["rates"]) == {"true", "false"}
    assert (
        Artifact.load(first).manifest["encoder"]
        == Artifact.load(tmp_path / "measured" / "artifact").manifest["encoder"]
    )
