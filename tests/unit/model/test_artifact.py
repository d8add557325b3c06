"""An artifact comes back as it was saved, or not at all."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.artifact import FORMAT_VERSION, MANIFEST, STARTER, TOKENIZER, WEIGHTS, Artifact, resolve
from model.errors import ArtifactError
from model.golden import save_with_golden, verify
from model.scoring import load_scorer
from model.torch_scorer import SCALE, network_from, round_encoder, tensors_from
from tests.tiny_artifact import HEADS, make_tiny_artifact

TEXTS = ["I want my money back", "快递到哪了", "", "好" * 500, "\x00\ud800 👍"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny")


def test_scores_have_the_promised_shapes(tiny: Path) -> None:
    scorer = load_scorer(tiny, device="cpu")
    encoded = scorer.encode(scorer.prepare(TEXTS))
    assert encoded.shape == (5, scorer.hidden)
    assert encoded.dtype == np.float32
    assert set(scorer.labels) == set(HEADS)
    for head, labels in HEADS.items():
        probabilities = scorer.classify(head, encoded)
        assert probabilities.shape == (5, len(labels))
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
        assert (scorer.threshold(head) is not None) == head.startswith("intent.")
    vectors = scorer.vectors(encoded)
    assert vectors.shape == (5, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert scorer.encode([]).shape == (0, scorer.hidden)
    with pytest.raises(KeyError):
        scorer.classify("mood", encoded)
    with pytest.raises(KeyError):
        scorer.tensor("click.weight")


def test_a_text_scores_the_same_in_any_company(tiny: Path) -> None:
    scorer = load_scorer(tiny, device="cpu")
    together = scorer.encode(scorer.prepare(TEXTS * 50))
    alone = np.concatenate([scorer.encode(scorer.prepare([text])) for text in TEXTS])
    np.testing.assert_allclose(together, np.tile(alone, (50, 1)), atol=1e-5)


def test_a_figure_that_is_none_is_not_written_and_read_as_null(tiny: Path, tmp_path: Path) -> None:
    first = Artifact.load(tiny)
    own = first.manifest | {"click": {"valid": {"auc": float("nan"), "n": 3}}}
    with pytest.raises(ValueError, match="not JSON compliant"):
        Artifact.save(tmp_path / "own", own, first.tensors, first.tokenizer_json)
    older = shutil.copytree(tiny, tmp_path / "older")  # as releases before wrote it
    own["checksum"] = ""
    for _ in range(2):
        content = (json.dumps(own, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()
        own["checksum"] = own["checksum"] or hashlib.sha256(content).hexdigest()
    (older / MANIFEST).write_bytes(content)
    found = Artifact.load(older)
    assert found.manifest["click"] == {"valid": {"auc": None, "n": 3}}
    assert found.add({}, "other", {}).manifest["click"] == found.manifest["click"]


def test_round_trip_keeps_every_tensor(tiny: Path, tmp_path: Path) -> None:
    first = Artifact.load(tiny)
    second = Artifact.save(tmp_path / "copy", first.manifest, first.tensors, first.tokenizer_json)
    assert (second.manifest["version"], second.manifest["space"]) == (
        first.manifest["version"],
        first.manifest["space"],
    )
    again = Artifact.load(tmp_path / "copy")
    assert again.tensors.keys() == first.tensors.keys()
    for name, value in first.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], value)
    assert verify(tmp_path / "copy") < 1e-3


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([WEIGHTS, TOKENIZER, MANIFEST]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7)
)
def test_one_damaged_bit_is_refused_by_name(tiny: Path, tmp_path: Path, name: str, place: float, bit: int) -> None:
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tiny, folder)
    content = bytearray((folder / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        Artifact.load(folder)


@pytest.mark.parametrize("name", [WEIGHTS, TOKENIZER, MANIFEST])
def test_a_missing_or_cut_file_is_refused_by_name(tiny: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny, tmp_path / "cut")
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=name):
        Artifact.load(folder)
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        Artifact.load(folder)


def test_another_format_is_refused_with_advice(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "newer")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for version, advice in ((FORMAT_VERSION + 1, "upgrade millrace"), (FORMAT_VERSION - 1, "train the artifact again")):
        content = json.dumps(manifest | {"format_version": version})
        (folder / MANIFEST).write_text(content, encoding="utf-8")
        with pytest.raises(ArtifactError, match=advice):
            Artifact.load(folder)


def test_int8_matrices_come_back_within_half_a_step(tmp_path: Path) -> None:
    tiny = make_tiny_artifact(tmp_path / "tiny")
    artifact = Artifact.load(tiny)
    network = network_from(artifact)
    round_encoder(network)
    manifest = {k: v for k, v in artifact.manifest.items() if k != "golden"}
    space = {name: value for name, value in artifact.tensors.items() if name.startswith("space.")}
    save_with_golden(tmp_path / "int8", manifest, tensors_from(network, int8=True) | space, artifact.tokenizer_json)
    small = Artifact.load(tmp_path / "int8")
    name = "encoder.encoder.layer.0.output.dense.weight"
    assert small.tensors[name].dtype == np.int8
    exact = artifact.tensors[name].astype(np.float32)
    step = small.tensors[name + SCALE][:, None]
    restored = small.tensors[name].astype(np.float32) * step
    assert (np.abs(restored - exact) <= 0.51 * step).all()
    # Rounding beforehand means that what is stored is exactly what was calibrated.
    torch.testing.assert_close(
        dict(network_from(small).named_parameters())[name], dict(network.named_parameters())[name], rtol=1e-6, atol=1e-9
    )


def test_weights_that_do_not_fit_the_manifest_are_refused(tiny: Path, tmp_path: Path) -> None:
    artifact = Artifact.load(tiny)
    tensors = {k: v for k, v in artifact.tensors.items() if k != "heads.emotion.bias"}
    Artifact.save(tmp_path / "lacking", artifact.manifest, tensors, artifact.tokenizer_json)
    with pytest.raises(ArtifactError, match="emotion"):
        load_scorer(tmp_path / "lacking", device="cpu")


def test_another_computation_fails_the_golden_set(tiny: Path, tmp_path: Path) -> None:
    artifact = Artifact.load(tiny)
    tensors = artifact.tensors | {"heads.stars.bias": np.array([5, 0, 0, 0, 0], np.float16)}
    Artifact.save(tmp_path / "other", artifact.manifest, tensors, artifact.tokenizer_json)
    with pytest.raises(ArtifactError, match=r"stars deviates"):
        verify(tmp_path / "other")


def test_adding_a_head_changes_version_but_not_space(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "more")
    (folder / "README.md").write_text("a model card", encoding="utf-8")
    before = Artifact.load(folder)
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    before.add({"click.weight": weight}, "click", {"features": ["cosine"]})
    after, scorer = Artifact.load(folder), load_scorer(folder, device="cpu")
    assert after.manifest["space"] == before.manifest["space"]
    assert after.manifest["version"] != before.manifest["version"]
    assert after.manifest["click"] == {"features": ["cosine"]}
    np.testing.assert_array_equal(scorer.tensor("click.weight"), weight)
    assert (folder / "README.md").read_text(encoding="utf-8") == "a model card"
    assert [p.name for p in tmp_path.iterdir()] == ["more"]  # nothing temporary is left behind
    with pytest.raises(ArtifactError, match="encoder"):
        before.add({"encoder.x": weight}, "click", {})
    with pytest.raises(ArtifactError, match="heads"):
        before.add({}, "heads", {})


def test_the_space_follows_mean_and_projection(tiny: Path, tmp_path: Path) -> None:
    artifact = Artifact.load(tiny)
    moved = artifact.tensors | {"space.mean": artifact.tensors["space.mean"] + 1}
    other = Artifact.save(tmp_path / "moved", artifact.manifest, moved, artifact.tokenizer_json)
    assert other.manifest["space"] != artifact.manifest["space"]


def test_names_resolve_to_folders(tiny: Path) -> None:
    assert resolve(str(tiny)) == tiny
    assert STARTER.name == "starter"
    with pytest.raises(ArtifactError, match="nowhere"):
        resolve("nowhere")


def test_an_absent_device_is_named(tiny: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ArtifactError, match="--device cpu"):
        load_scorer(tiny, device="cuda")


def test_scoring_face_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, model.scoring, model.assess.evaluate, model.text; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
