"""Low-rank adapters: only they learn, and nothing of them is left in what is exported."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.artifact import Artifact
from model.errors import ModelError
from model.golden import verify
from model.network import Network
from model.torch_scorer import tensors_from
from model.training.lora import add_lora, lora_layers, merge_lora, shift
from model.training.loss import SharedPenalty
from model.training.optimiser import trained_parameters
from model.training.settings import Lora
from tests.tiny_training import make_corpus, make_network, make_trainer
from tests.toy_training import make_workshop, run, write_recipe

SETTINGS = Lora(rank=3, alpha=6.0, targets=["query", "value", "dense"])


pytestmark = pytest.mark.usefixtures("one_thread")


def encoded(network: Network) -> torch.Tensor:
    network.eval()
    with torch.no_grad():
        return network.encode(make_corpus().prepared)


def adapted() -> Network:
    """A network whose adapters have learned something."""
    network = make_network()
    add_lora(network, SETTINGS, frozen_layers=0, seed=1)
    list(make_trainer([[0, 1, 2], [3, 4, 5]] * 4, network, body_lr=0.05, frozen_layers=0).run(8))
    return network


def test_adapters_begin_as_nothing_and_alone_learn() -> None:
    network = make_network()
    before = encoded(network)
    names = set(dict(network.named_parameters()))
    add_lora(network, Lora(), frozen_layers=0, seed=1)
    assert set(dict(network.named_parameters())) == names  # rank 0: nothing happens
    add_lora(network, SETTINGS, frozen_layers=1, seed=1)
    assert torch.equal(encoded(network), before)
    trained = trained_parameters(network)
    assert all("lora_" in name or name.startswith("heads.") for name in trained)
    assert any("layer.1." in name for name in trained)
    assert not any("layer.0." in name for name in trained)


def test_the_merged_network_is_the_adapted_one() -> None:
    network, untouched = adapted(), make_network()
    with_adapters = encoded(network)
    assert not torch.allclose(with_adapters, encoded(untouched), atol=1e-3)
    merge_lora(network)
    assert not list(lora_layers(network.encoder))
    np.testing.assert_allclose(encoded(network).numpy(), with_adapters.numpy(), atol=1e-5)
    assert {n: t.shape for n, t in tensors_from(network).items()} == {
        n: t.shape for n, t in tensors_from(untouched).items()
    }


def test_the_penalty_is_on_the_matrix_with_what_is_added() -> None:
    network, start = adapted(), make_network()
    layers = dict(lora_layers(network.encoder))
    added = sum(float(shift(layer).detach().pow(2).sum()) for layer in layers.values())
    whole = sum(float((layer.weight + shift(layer)).detach().pow(2).sum()) for layer in layers.values())
    assert SharedPenalty(network.encoder, "l2sp", 2.0)().item() == pytest.approx(added, rel=1e-5)
    assert SharedPenalty(network.encoder, "frobenius", 2.0)().item() == pytest.approx(whole, rel=1e-5)
    merge_lora(network)
    merged, plain = network.encoder.state_dict(), start.encoder.state_dict()
    gaps = (merged[f"{name}.weight"] - plain[f"{name}.weight"] for name in layers)
    assert sum(float(gap.pow(2).sum()) for gap in gaps) == pytest.approx(added, rel=1e-4)


def test_targets_that_fit_nothing_are_refused() -> None:
    with pytest.raises(ModelError, match=r"training\.lora\.targets"):
        add_lora(make_network(), Lora(rank=2, targets=["q_proj"]), frozen_layers=0, seed=0)


def test_a_run_with_adapters_experts_and_all_the_rest_leaves_a_plain_artifact(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    write_recipe(
        workshop,
        "rich.yaml",
        lora={"rank": 2, "dropout": 0.1},
        experts="ple",
        experts_width=4,
        weighting="famo",
        accumulate=2,
        r_drop=0.5,
        optimiser="adam",
    )
    folder = run(workshop, tmp_path / "out", recipe="rich.yaml", tokens=6000)
    assert verify(folder, device="cpu") < 0.01
    artifact = Artifact.load(folder)
    assert not [name for name in artifact.tensors if "lora" in name or "base_layer" in name]
    assert artifact.manifest["experts"] == {
        "kind": "ple",
        "width": 4,
        "shared": 4,
        "own": 1,
        "heads": ["sentiment", "intent.shop"],
    }
    assert artifact.manifest["metrics"][0]["accuracy"] > 0.8
