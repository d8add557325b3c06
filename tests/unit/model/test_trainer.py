"""Single training steps on a tiny network: what a step is made of, and what is seen of it."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn import functional
from transformers import AutoModel, ModernBertConfig, MPNetConfig

from model.calibrate import log_loss, temperature
from model.errors import ModelError
from model.experts import ExpertsConfig
from model.network import Network
from model.scoring import Floats
from model.training.conflict import gradient_cosines, last_matrices
from model.training.export import _blend, encode, first_half
from model.training.fairness import gap_penalty
from model.training.foreign import convert
from model.training.lora import add_lora
from model.training.loss import disagreement
from model.training.optimiser import make_optimiser, set_rates
from model.training.settings import Lora, Training
from model.training.valid import valid_figures
from model.training.watch import METRICS, Watch
from tests.tiny_training import HEADS, make_corpus, make_network, make_trainer, make_valid

ROWS = list(range(12))
HALVES = [ROWS[:6], ROWS[6:]]  # four rows of each head, two in each half
PADDED = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


pytestmark = pytest.mark.usefixtures("one_thread")


def weights_of(network: Network) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in network.named_parameters()}


def assert_close(one: Network, other: Network, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    for name, value in weights_of(one).items():
        np.testing.assert_allclose(weights_of(other)[name], value, rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("weighting", ["equal", "uncertainty", "famo"])
@pytest.mark.parametrize("halves", [HALVES, [ROWS[:7], ROWS[7:]]], ids=["even", "uneven"])
def test_accumulated_batches_are_the_big_batch(weighting: str, halves: list[list[int]]) -> None:
    settings = {"weighting": weighting, "optimiser": "sgd", "body_lr": 0.5, "head_lr": 0.5, "penalty_weight": 0.01}
    whole = make_trainer([ROWS] * 3, **settings)
    parts = make_trainer(halves * 3, accumulate=2, **settings)
    assert len(parts.steps) == len(whole.steps) == 3
    for one, other in zip(whole.run(3), parts.run(3), strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert one.weights == pytest.approx(other.weights, rel=1e-4)
        assert one.tokens == other.tokens
    assert_close(whole.network, parts.network)


def test_a_step_is_the_documents_loss_under_adam() -> None:
    """L = (1/N) sum L_i + lambda 1/2 ||theta_s||^2, cross-entropy and mean absolute error, by torch's own pieces."""
    trainer = make_trainer([ROWS], optimiser="adam", penalty="frobenius", penalty_weight=0.01, gradient_norm_max=1e9)
    plain, corpus = make_network(), trainer.corpus
    encoded = plain.encode([corpus.prepared[i] for i in ROWS])
    terms = []
    for column, head in enumerate(corpus.heads):
        own = [i for i in ROWS if corpus.labels[i, column] >= 0]
        truth = torch.tensor(corpus.labels[own, column])
        logits = plain.head(head)(encoded[own])
        terms.append(functional.cross_entropy(logits, truth))
        if head == "stars":
            expected = torch.softmax(logits, 1) @ torch.tensor([1.0, 2.0, 3.0])
            terms[-1] = terms[-1] + (expected - (truth + 1)).abs().mean()
    matrices = [p for name, p in plain.encoder.named_parameters() if p.dim() == 2 and "embedding" not in name]
    loss = sum(terms[1:], terms[0]) / 3 + 0.01 / 2 * sum(p.pow(2).sum() for p in matrices)
    body = [p for name, p in plain.encoder.named_parameters() if "word_emb" not in name]
    words = [p for name, p in plain.encoder.named_parameters() if "word_emb" in name]
    groups = [
        {"params": body, "lr": 2e-4},
        {"params": words, "lr": 8e-4},
        {"params": plain.heads.parameters(), "lr": 2e-3},
    ]
    loss.backward()
    torch.optim.Adam(groups).step()
    next(trainer.run(1))
    assert_close(plain, trainer.network, atol=1e-5)


def test_optimisers() -> None:
    network = make_network(ExpertsConfig("mmoe", 4, 2, 0, ("mood",)))
    adamw = make_optimiser(network, Training())
    assert isinstance(adamw, torch.optim.AdamW)
    assert {g["weight_decay"] for g in adamw.param_groups} == {0.0, 0.01}
    assert {g["peak"] for g in adamw.param_groups} == {2e-4, 8e-4, 2e-3}
    for name, kind in (("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
        found = make_optimiser(network, Training(optimiser=name, momentum=0.8))
        assert type(found) is kind
        assert {g["weight_decay"] for g in found.param_groups} == {0.0}
        assert name == "adam" or {g["momentum"] for g in found.param_groups} == {0.8}
    assert [round(set_rates(adamw, step, 10, 0.2), 3) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 0.125]
    assert adamw.param_groups[0]["lr"] == adamw.param_groups[0]["peak"] * 0.125


@pytest.mark.parametrize("weighting", ["uncertainty", "famo"])
def test_learned_weights_move_and_an_absent_task_keeps_its_own(weighting: str) -> None:
    stars_only = [i for i in ROWS if i % 3 == 2]
    trainer = make_trainer([ROWS] * 5 + [stars_only], weighting=weighting, head_lr=0.05)
    *first, last = trainer.run(6)
    assert first[0].weights.keys() == {"mood", "intent.shop", "stars"}
    assert first[0].weights != pytest.approx(first[-1].weights, rel=1e-3)
    assert list(last.weights) == ["stars"]
    if weighting == "famo":
        assert all(sum(report.weights.values()) == pytest.approx(len(report.weights)) for report in [*first, last])


def test_a_run_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    for optimiser, weighting, rank in (("adamw", "uncertainty", 0), ("sgd", "famo", 0), ("adam", "equal", 2)):
        settings = {"optimiser": optimiser, "weighting": weighting, "dropout": 0.2, "accumulate": 2}
        networks = [make_network() for _ in range(3)]
        for network in networks:
            add_lora(network, Lora(rank, dropout=0.1), frozen_layers=0, seed=5)
        whole, stopped, resumed = (make_trainer(HALVES * 6, network, **settings) for network in networks)
        list(whole.run(6))
        list(stopped.run(2))
        stopped.save(tmp_path / "c.safetensors")
        resumed.load(tmp_path / "c.safetensors")
        assert resumed.step == 2
        state = [value for kept in resumed._optimiser.state.values() for value in kept.values()]
        assert all(value.data_ptr() % 16 == 0 for value in state)  # else MKL may round otherwise
        list(resumed.run(6))
        for name, value in weights_of(whole.network).items():
            np.testing.assert_array_equal(weights_of(resumed.network)[name], value, err_msg=name)


@pytest.mark.parametrize(("fused", "lies"), [(True, "meta"), (False, "cpu")])
def test_fused_steps_are_resumed_where_their_parameters_lie(tmp_path: Path, fused: bool, lies: str) -> None:
    trained, resumed = make_trainer([ROWS] * 2), make_trainer([ROWS] * 2, make_network().to("meta"))
    list(trained.run(1))
    trained.save(tmp_path / "c.safetensors")
    for group in resumed._optimiser.param_groups:  # as make_optimiser has it on a GPU
        group["fused"] = fused
    resumed.load(tmp_path / "c.safetensors")
    states = resumed._optimiser.state.values()
    assert {state["step"].device.type for state in states} == {lies}
    assert {state["exp_avg"].device.type for state in states} == {"meta"}


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    make_trainer(HALVES).save(path)
    watched = {"held_every": 7, "tensorboard": True, "valid_every": 3, "valid_rows": 9}
    make_trainer(HALVES, **watched).load(path)  # what is only watched may change
    with pytest.raises(ModelError, match="a run of 2 steps, not 1"):
        make_trainer(HALVES[:1]).load(path)
    with pytest.raises(ModelError, match="another recipe"):
        make_trainer(HALVES, body_lr=1e-3).load(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="no readable checkpoint"):
        make_trainer(HALVES).load(path)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    trainer = make_trainer([ROWS])
    with torch.no_grad():
        trainer.network.head("mood").bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="at step 0: mood is nan"):
        next(trainer.run(1))


def test_r_drop_is_the_symmetric_divergence_of_two_masks() -> None:
    first, second = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[1.0, 1.0, 9.0]])
    allowed = torch.tensor([[True, True, False]])
    p, q = torch.softmax(first[:, :2], 1), torch.softmax(second[:, :2], 1)
    expected = ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
    leaf = first.clone().requires_grad_()
    found = disagreement(leaf, second, allowed)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert leaf.grad is not None
    assert leaf.grad[0, 2] == 0
    assert leaf.grad.isfinite().all()
    without = [next(make_trainer([ROWS], r_drop=alpha).run(1)).losses for alpha in (0.0, 1.0)]
    assert without[0] == pytest.approx(without[1])  # equal masks (no dropout) agree
    torn = [next(make_trainer([ROWS], dropout=0.5, r_drop=alpha).run(1)).losses for alpha in (1e-9, 4.0)]
    assert all(torn[1][head] > torn[0][head] for head in torn[0])


def test_the_fairness_penalty_joins_the_loss() -> None:
    rows = np.array(range(18))  # six of a head, of which both groups have at least two
    plain, fair = (make_trainer([list(rows)], fairness_weight=weight) for weight in (0.0, 3.0))
    for trainer in (plain, fair):  # groups of four and more count, so let one head have them all
        trainer.corpus.groups[:] = np.arange(24) // 3 % 2
        trainer.corpus.labels[:, 0] = np.arange(24) % 3
    expected, found = (next(trainer.run(1)).losses for trainer in (plain, fair))
    network, corpus = make_network(), plain.corpus
    logits = network.head("mood")(network.encode([corpus.prepared[i] for i in rows]))
    losses = functional.cross_entropy(logits, torch.tensor(corpus.labels[rows, 0]), reduction="none")
    penalty = gap_penalty(losses, torch.tensor(corpus.groups[rows]), corpus.group_names, strength=3.0)
    assert penalty > 0
    assert found["mood"] == pytest.approx(expected["mood"] + float(penalty.detach()), rel=1e-4)


def test_conflict_is_the_cosine_of_the_gradients() -> None:
    network = make_network()
    parameters = last_matrices(network)
    assert {id(p) for p in parameters} == {
        id(p) for name, p in network.named_parameters() if "encoder.layer.1." in name and p.dim() == 2
    }
    pooled = network.encode(make_trainer([ROWS]).corpus.prepared[:4])
    a, b = pooled[:, 0].sum(), pooled[:, 1].sum()
    found = gradient_cosines(
        {"a": a, "b": b, "minus a": -2 * a, "none": torch.zeros((), requires_grad=True)}, parameters
    )
    assert found["a vs minus a"] == pytest.approx(-1, abs=1e-5)
    assert found["a vs none"] == 0
    grads = [torch.cat([g.flatten() for g in torch.autograd.grad(x, parameters, retain_graph=True)]) for x in (a, b)]
    assert found["a vs b"] == pytest.approx(float(torch.cosine_similarity(*grads, dim=0)), abs=1e-5)
    assert all(p.grad is None for p in parameters)
    assert gradient_cosines({"a": a, "b": b}, []) == {}


@pytest.mark.parametrize(
    ("config", "layer"),
    [
        (MPNetConfig(**PADDED, vocab_size=40), "encoder.model.encoder.layer.1."),
        (ModernBertConfig(**PADDED, vocab_size=40, pad_token_id=0, cls_token_id=1), "encoder.model.layers.1."),
    ],
    ids=["mpnet", "modernbert"],
)
def test_conflict_is_seen_in_the_last_layer_of_a_padded_body(config: Any, layer: str) -> None:
    torch.manual_seed(0)
    network = Network(convert(AutoModel.from_config(config)), None, {head: len(own) for head, own in HEADS.items()})
    expected = {name for name, p in network.named_parameters() if name.startswith(layer) and p.dim() == 2}
    watched = {id(p) for p in last_matrices(network)}
    assert len(expected) > 1
    assert {name for name, p in network.named_parameters() if id(p) in watched} == expected
    report = next(make_trainer([ROWS], network, tensorboard=True, conflict_every=1).run(1))
    assert all(report.conflict.values())


def test_a_padded_body_is_trained_with_the_recipes_dropout() -> None:
    body = convert(AutoModel.from_config(MPNetConfig(**PADDED, vocab_size=40)))
    network = Network(body, None, {head: len(own) for head, own in HEADS.items()})
    for share in (0.0, 0.3):
        make_trainer([ROWS], network, body_dropout=share)
        assert {module.p for module in body.modules() if isinstance(module, torch.nn.Dropout)} == {share}


def test_watching_changes_no_bit_and_is_written_down(tmp_path: Path) -> None:
    quiet = make_trainer(HALVES * 3, dropout=0.2, held_every=0)
    every = {"held_every": 2, "held_rows": 4, "conflict_every": 3, "valid_every": 4}
    watched = make_trainer(HALVES * 3, dropout=0.2, tensorboard=True, **every)
    list(quiet.run(6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tensorboard's own
        with Watch(tmp_path, done=0, tensorboard=True) as watch:
            for report in watched.run(6):
                watch.note(report)
    for name, value in weights_of(quiet.network).items():
        np.testing.assert_array_equal(weights_of(watched.network)[name], value, err_msg=name)
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "held" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "conflict" in line] == [1, 4]
    figures = {line["step"]: line["valid"] for line in lines if "valid" in line}
    assert list(figures) == [4, 6]  # and at the end
    assert [list(own) for own in figures[6].values()] == [["accuracy", "macro_f1"]] * 2 + [
        ["accuracy", "macro_f1", "mae"]
    ]
    assert lines[0]["losses"].keys() == lines[0]["weights"].keys() == {"mood", "intent.shop", "stars"}
    assert all(line["tokens_per_second"] > 0 and line["gradient_norm"] > 0 for line in lines)
    assert any((tmp_path / "tb").iterdir())
    scalars = events(tmp_path / "tb")
    assert {"losses/mood", "weights/stars", "held/stars", "conflict/mood_vs_stars", "gradient_norm"} <= scalars
    assert {"valid_accuracy/mood", "valid_macro_f1/intent.shop", "valid_mae/stars"} <= scalars
    assert "valid_mae/mood" not in scalars


def test_valid_rows_are_judged_as_an_evaluation_would(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network().eval()
    rows = {rows.name: rows for rows in make_valid(make_corpus())}
    logits = np.zeros((8, 3), np.float32)
    logits[:, 2] = 9  # a class that the file does not have is not guessed
    logits[:5, 1], logits[5:, 0] = 3, 3
    monkeypatch.setattr(network, "logits", lambda head, encoded: torch.tensor(logits))
    found = valid_figures(network, list(rows.values()))
    for name, own in rows.items():
        guess = np.array([1] * 5 + [0] * 3)
        assert found[name]["accuracy"] == (guess == own.truth).mean()
        assert found[name]["macro_f1"] == pytest.approx(f1_score(own.truth, guess, average="macro"), abs=1e-5)
    stars = torch.softmax(torch.tensor(logits), 1).numpy() @ [1, 2, 3]
    assert found["stars"]["mae"] == pytest.approx(np.abs(stars - rows["stars"].truth - 1).mean(), abs=1e-5)
    none = make_trainer([ROWS] * 3, valid_every=1)  # without a tensorboard nobody asks
    assert not any(report.valid for report in none.run(3))


def events(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return set(found.Tags()["scalars"])


def test_a_resumed_watch_forgets_what_is_trained_again(tmp_path: Path) -> None:
    trainer = make_trainer([ROWS] * 6)
    with Watch(tmp_path, done=0, tensorboard=False) as watch:
        for report in trainer.run(4):
            watch.note(report)
    with (tmp_path / METRICS).open("a") as handle:
        handle.write('{"step": 5, "los')  # killed in the middle of a line
    trainer.step = 2
    with Watch(tmp_path, done=2, tensorboard=False) as watch:
        for report in trainer.run(4):
            watch.note(report)
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()] == [1, 2, 3, 4]
    assert not (tmp_path / "tb").exists()
    (tmp_path / METRICS).write_text("\0\0\n")
    with pytest.raises(ModelError, match=r"metrics\.jsonl is damaged"):
        Watch(tmp_path, done=2, tensorboard=False)


def test_a_blend_is_taken_only_where_it_helps_on_rows_it_was_not_fitted_on() -> None:
    head, taken = next(iter(HEADS)), set()
    for seed in range(12):
        corpus, network = make_corpus(rows=120, held=90, seed=seed), make_network(seed=seed)
        held = np.flatnonzero(corpus.held)
        encoded = encode(network, [corpus.prepared[row] for row in held])
        labels = corpus.labels[held, 0]
        before, weight = judged_loss(network, head, encoded, labels), network.head(head).weight.clone()
        _blend(network, corpus, head, torch.randn_like(weight), held, encoded)
        changed = not torch.equal(network.head(head).weight, weight)
        taken.add(changed)
        after = judged_loss(network, head, encoded, labels)
        assert after < before if changed else after == before
    assert taken == {True, False}, "of random machines some help by chance"


def judged_loss(network: Network, head: str, encoded: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Log-loss on the half of the labelled rows that calibration does not fit on, cooled on the other half."""
    layer = network.head(head)
    logits = (encoded @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()).astype(np.float64)
    allowed = np.ones(logits.shape, bool)
    fitted = (labels >= 0) & first_half(len(labels))
    judged = (labels >= 0) & ~first_half(len(labels))
    heat = temperature(logits[fitted], labels[fitted], allowed[fitted])
    return log_loss(logits[judged] / heat, labels[judged], allowed[judged])
