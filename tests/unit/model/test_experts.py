"""Experts: nothing at first, the formula afterwards, and the same in training, export and scoring."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.artifact import Artifact
from model.bag import GramBag
from model.encoder import build_encoder
from model.errors import ArtifactError
from model.experts import Experts, ExpertsConfig
from model.golden import save_with_golden, verify
from model.network import Network
from model.scoring import load_scorer
from model.torch_scorer import network_from, tensors_from
from tests.tiny_artifact import make_tiny_artifact
from tests.tiny_training import CONFIG, HEADS

AB = ("a", "b.c")
KINDS = [
    ExpertsConfig("towers", 4, 0, 1, AB),
    ExpertsConfig("mmoe", 4, 3, 0, AB),
    ExpertsConfig("ple", 4, 2, 2, AB),
]
ROWS = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))


def disturb(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)


def test_settings_become_numbers_of_experts() -> None:
    def of(kind: str) -> ExpertsConfig | None:
        return ExpertsConfig.of(kind, 8, 4, 3, AB)

    assert of("none") is None
    assert of("towers") == ExpertsConfig("towers", 8, 0, 1, AB)
    assert of("mmoe") == ExpertsConfig("mmoe", 8, 4, 0, AB)
    assert (ple := of("ple")) == ExpertsConfig("ple", 8, 4, 3, AB)
    assert ple is not None
    assert ExpertsConfig.from_dict(ple.to_dict()) == ple


@pytest.mark.parametrize("config", KINDS, ids=lambda c: c.kind)
def test_training_begins_at_the_plain_network_and_every_part_can_learn(config: ExpertsConfig) -> None:
    experts = Experts(config, 6)
    assert torch.equal(experts("a", ROWS), ROWS)
    optimiser = torch.optim.SGD(experts.parameters(), lr=0.5)
    for _ in range(3):  # U first, then what stands before it
        optimiser.zero_grad()
        (experts("a", ROWS) * torch.linspace(-1, 1, 42).view(7, 6)).sum().backward()
        optimiser.step()
    for name, parameter in experts.named_parameters():
        assert (parameter.grad is None) == ("b/c" in name), name  # of another head alone
        assert parameter.grad is None or bool(parameter.grad.any()), name


@pytest.mark.parametrize("config", KINDS, ids=lambda c: c.kind)
def test_the_formula(config: ExpertsConfig) -> None:
    experts = Experts(config, 6)
    disturb(experts)
    state = {name: value.numpy().astype(float) for name, value in experts.state_dict().items()}
    x = ROWS.numpy().astype(float)
    found = []
    for part in [f"shared.{i}" for i in range(config.shared)] + [f"own.b/c.{i}" for i in range(config.own)]:
        inner = x @ state[f"{part}.down.weight"].T + state[f"{part}.down.bias"]
        inner = inner / (1 + np.exp(-inner))
        found.append(inner @ state[f"{part}.up.weight"].T + state[f"{part}.up.bias"])
    shares = np.ones((7, 1))
    if len(found) > 1:
        shares = np.exp(x @ state["gates.b/c.weight"].T + state["gates.b/c.bias"])
        shares /= shares.sum(1, keepdims=True)
    expected = x + sum(shares[:, [i]] * part for i, part in enumerate(found))
    np.testing.assert_allclose(experts("b.c", ROWS).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", KINDS, ids=lambda c: c.kind)
def test_an_artifact_answers_as_the_network_does(config: ExpertsConfig, tmp_path: Path) -> None:
    plain = Artifact.load(make_tiny_artifact(tmp_path / "plain"))
    heads = {name: len(head["labels"]) for name, head in plain.manifest["heads"].items()}
    like = network_from(plain)
    config = replace(config, heads=tuple(heads))
    network = Network(like.encoder, like.bag, heads, config)
    network.heads.load_state_dict(like.heads.state_dict())
    assert network.experts is not None
    disturb(network.experts)
    space = {name: value for name, value in plain.tensors.items() if name.startswith("space.")}
    manifest = dict(plain.manifest) | {"experts": config.to_dict()}
    folder = tmp_path / "experts"
    artifact = save_with_golden(folder, manifest, tensors_from(network) | space, plain.tokenizer_json)
    assert verify(folder, device="cpu") < 0.01
    assert artifact.manifest["space"] == plain.manifest["space"]  # encoded rows are shared, vectors as they were
    scorer = load_scorer(folder, device="cpu")
    encoded = scorer.encode(scorer.prepare(["退款 refund", "a good guitar", "我的快递"]))
    encoded.setflags(write=False)  # a cached row may not be written to
    without = load_scorer(tmp_path / "plain", device="cpu")
    np.testing.assert_array_equal(
        encoded, without.encode(without.prepare(["退款 refund", "a good guitar", "我的快递"]))
    )
    for head in ("stars", "intent.shop"):
        with torch.inference_mode():
            logits = network.logits(head, torch.tensor(encoded))
        np.testing.assert_allclose(scorer.classify(head, encoded), torch.softmax(logits, 1).numpy(), atol=5e-4)
        assert np.abs(scorer.classify(head, encoded) - without.classify(head, encoded)).max() > 2e-3
    with pytest.raises(ArtifactError, match="belongs to the artifact"):
        artifact.add({"experts.shared.0.up.bias": np.zeros(2, np.float32)}, "more", {})


def test_experts_leave_the_ngram_columns_alone() -> None:
    bag = GramBag(64, 8, 3)
    network = Network(
        build_encoder(CONFIG),
        bag,
        {head: len(labels) for head, labels in HEADS.items()},
        replace(KINDS[1], heads=("mood",)),
    )
    assert network.experts is not None
    disturb(network.experts)
    encoded = torch.randn(5, network.hidden)
    changed = network.rows_for("mood", encoded)
    assert torch.equal(changed[:, -3:], encoded[:, -3:])
    assert not torch.allclose(changed[:, :-3], encoded[:, :-3])
    np.testing.assert_array_equal(network.read("mood", encoded.numpy()), changed.detach().numpy())
    assert network.rows_for("stars", encoded) is encoded  # a head without experts


@pytest.mark.parametrize("config", KINDS, ids=lambda c: c.kind)
def test_a_head_can_be_taken_out(config: ExpertsConfig) -> None:
    experts = Experts(config, 6)
    disturb(experts)
    tensors = {f"experts.{name}": value for name, value in experts.state_dict().items()} | {"heads.b.c.bias": ROWS}
    smaller, kept = config.without(["b.c", "new"], tensors)
    assert "heads.b.c.bias" in kept
    other = Experts(smaller, 6)
    other.load_state_dict({n.removeprefix("experts."): v for n, v in kept.items() if n.startswith("experts.")})
    assert torch.equal(other("a", ROWS), experts("a", ROWS))
    assert other("b.c", ROWS) is ROWS
