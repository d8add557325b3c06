"""The scorer on torch: packed encoder, n-gram channel, calibrated heads, user-state vectors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.artifact import Artifact
from model.bag import GramBag
from model.cpu_encoder import CpuEncoder
from model.cuda_encoder import CudaEncoder
from model.encoder import EncoderConfig, PackedEncoder, build_encoder
from model.errors import ArtifactError
from model.experts import ExpertsConfig, head_name, module_name
from model.network import Network
from model.packing import chunks
from model.products import fast_precision
from model.scoring import Floats, Prepared
from model.text import TextCodec, TextSpec

CHUNK_TEXTS_MAX = 192  # texts and tokens of one sub-batch on CPU: more falls out of cache
CHUNK_TOKENS_MAX = 6144
SCALE = ".row_scale"  # name of the row scales of an int8 matrix, after its own


class TorchScorer:
    """An artifact folder ready to score. See ``model.scoring.Scorer`` for the meaning of each method."""

    def __init__(self, folder: Path, *, device: str = "auto", precision: str = "auto") -> None:
        """Raises ArtifactError when the folder is damaged or the device is absent."""
        artifact = Artifact.load(folder)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ArtifactError(f"device {device} was asked for, but torch sees no CUDA device; use --device cpu")
        self.device = torch.device(device)
        manifest = artifact.manifest
        self.version: str = manifest["version"]
        self.space: str = manifest["space"]
        self.manifest = manifest
        self.labels: Mapping[str, Sequence[str]] = {name: h["labels"] for name, h in manifest["heads"].items()}
        self._heads = manifest["heads"]
        self._sections = {"click": manifest.get("click", {}), **self._heads}  # the click head is no head over texts
        self._codec = TextCodec(artifact.tokenizer_json, TextSpec.from_dict(manifest["text"]))
        self._network = network_from(artifact).eval().to(self.device)
        self.hidden = self._network.hidden
        encoder = self._network.encoder
        self._served: CpuEncoder | CudaEncoder | None = None
        exact = torch.float32 if precision == "float32" else None
        if isinstance(encoder, PackedEncoder) and self.device.type == "cpu":
            self._served = CpuEncoder(encoder, dtype=exact or fast_precision())
        elif isinstance(encoder, PackedEncoder) and self.device.type == "cuda":
            self._served = CudaEncoder(encoder, self.device, exact, longest=self._codec.spec.max_tokens)
        self._tensors = {name: t for name, t in artifact.tensors.items() if not name.startswith(("encoder.", "bag."))}
        self._mean = self.tensor("space.mean")
        self._projection = self.tensor("space.projection")
        self._weights = {
            name: (self.tensor(f"heads.{name}.weight").T.copy(), self.tensor(f"heads.{name}.bias"))
            for name in self.labels
        }

    @property
    def codec(self) -> TextCodec:
        return self._codec

    @property
    def network(self) -> Network:
        return self._network

    def prepare(self, texts: Sequence[str]) -> list[Prepared]:
        return self._codec.prepare(texts)

    def encode(self, prepared: Sequence[Prepared]) -> Floats:
        if self._served is None:
            return self._encode_whole(prepared)
        rows = self._served.encode([text.ids for text in prepared])
        bag = self._network.bag
        if bag is None or not len(prepared):
            return rows if bag is None else np.zeros((0, self.hidden), np.float32)
        with torch.inference_mode():
            return np.concatenate([rows, bag(list(prepared)).cpu().numpy()], axis=1)

    def _encode_whole(self, prepared: Sequence[Prepared]) -> Floats:
        """Through the module that is trained: foreign encoders."""
        result = np.zeros((len(prepared), self.hidden), np.float32)
        whole = self.device.type != "cpu"
        lengths = [text.tokens for text in prepared]
        texts_max, tokens_max = (65536, 262144) if whole else (CHUNK_TEXTS_MAX, CHUNK_TOKENS_MAX)
        with torch.inference_mode():
            for part in chunks(lengths, texts_max, tokens_max):
                rows = self._network.encode([prepared[i] for i in part])
                result[part] = rows.float().cpu().numpy()
        return result

    def classify(self, head: str, encoded: Floats) -> Floats:
        weight, bias = self._weights[head]
        logits = (self._network.read(head, encoded) @ weight + bias) / np.float32(self._heads[head]["temperature"])
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]

    def vectors(self, encoded: Floats) -> Floats:
        projected = (encoded - self._mean) @ self._projection
        norm = np.linalg.norm(projected, axis=1, keepdims=True)
        return (projected / np.maximum(norm, 1e-12)).astype(np.float32)  # type: ignore[no-any-return]

    def threshold(self, head: str) -> float | None:
        value = self._heads[head]["threshold"]
        return None if value is None else float(value)

    def head(self, name: str) -> Mapping[str, Any]:
        return self._sections.get(name, {})  # type: ignore[no-any-return]

    def tensor(self, name: str) -> npt.NDArray[Any]:
        return self._tensors[name].astype(np.float32)


def network_from(artifact: Artifact) -> Network:
    """The network of an artifact, on CPU, float32. Raises ArtifactError when tensors are missing or misshaped."""
    manifest, tensors = artifact.manifest, artifact.tensors
    bag: GramBag | None = None
    if manifest["bag_columns"]:
        bag = GramBag(manifest["text"]["gram_buckets"], manifest["bag_grams"], manifest["bag_columns"])
    heads = {name: len(head["labels"]) for name, head in manifest["heads"].items()}
    experts = ExpertsConfig.from_dict(manifest["experts"]) if manifest.get("experts") else None
    network = Network(build_encoder(EncoderConfig(**manifest["encoder"])), bag, heads, experts)
    state = {}
    for name, array in tensors.items():
        if name.startswith(("encoder.", "bag.", "heads.", "experts.")) and not name.endswith(SCALE):
            value = torch.from_numpy(array)
            if name + SCALE in tensors:
                value = value.float() * torch.from_numpy(tensors[name + SCALE]).float()[:, None]
            keep = name.startswith("bag.") or not value.is_floating_point()
            state[_module_name(name)] = value if keep else value.float()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(f"{artifact.folder}: weights and manifest do not fit each other: {error}") from error
    return network


def tensors_from(network: Network, *, int8: bool = False) -> dict[str, npt.NDArray[Any]]:
    """The network's tensors under their artifact names; all but the bag in half precision.

    With ``int8`` the encoder's matrices are rounded to int8 by row, each with a tensor of scales [rows] beside it.
    """
    result = {}
    for name, value in network.state_dict().items():
        if int8 and name.startswith("encoder.") and value.dim() == 2 and value.is_floating_point():
            scale = (value.abs().amax(1).float() / 127).clamp_min(1e-12)
            result[name + SCALE] = scale.cpu().numpy()
            result[name] = (value / scale[:, None]).round().to(torch.int8).cpu().numpy()
            continue
        half = value.is_floating_point() and not name.startswith("bag.")
        result[_artifact_name(name)] = (value.half() if half else value).cpu().numpy()
    return result


def round_encoder(network: Network) -> None:
    """Round the encoder's matrices in place as ``tensors_from(int8=True)`` would store them, so that what is calibrated
    is what is served."""
    for value in network.encoder.state_dict().values():
        if value.dim() == 2 and value.is_floating_point():
            scale = (value.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
            value.copy_((value / scale).round() * scale)


def _artifact_name(name: str) -> str:
    if not name.startswith("heads."):
        return name
    module, _, kind = name.removeprefix("heads.").rpartition(".")
    return f"heads.{head_name(module)}.{kind}"


def _module_name(name: str) -> str:
    if not name.startswith("heads."):
        return name
    head, _, kind = name.removeprefix("heads.").rpartition(".")
    return f"heads.{module_name(head)}.{kind}"
