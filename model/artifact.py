"""The artifact: a folder of weights, tokenizer and manifest that is saved whole and loaded only if every byte is right.

``model.safetensors`` holds the tensors, ``tokenizer.json`` the vocabulary, ``manifest.json`` everything else, with the
SHA-256 of the other two and of itself. Nothing is ever unpickled. Other files (a model card) may lie beside them.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from model.errors import ArtifactError

FORMAT_VERSION = 2  # 2: n-grams of characters and words (not of word pieces), int8 matrices
WEIGHTS, TOKENIZER, MANIFEST = "model.safetensors", "tokenizer.json", "manifest.json"
_REQUIRED = (
    "format_version",
    "name",
    "version",
    "space",
    "text",
    "encoder",
    "bag_columns",
    "bag_grams",
    "heads",
    "files",
    "golden",
)
_ADVICE = "fetch the artifact folder again (git checkout or the release it came from)"

STARTER = Path(__file__).with_name("starter")

Tensors = dict[str, npt.NDArray[Any]]


def resolve(name: str | Path) -> Path:
    """The folder of a configured artifact: ``starter`` is the one in the package, anything else a path.

    Raises ArtifactError when there is no such folder.
    """
    folder = STARTER if str(name) == "starter" else Path(name).expanduser()
    if not folder.is_dir():
        raise ArtifactError(f"there is no artifact folder {folder}; give `starter` or the folder of an artifact")
    return folder


class Artifact:
    """A verified artifact folder: ``manifest`` and ``tensors`` in memory."""

    def __init__(self, folder: Path, manifest: dict[str, Any], tensors: Tensors, tokenizer_json: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tensors = tensors
        self.tokenizer_json = tokenizer_json

    @classmethod
    def load(cls, folder: Path) -> "Artifact":
        """Read and verify. Raises ArtifactError naming the file at fault and what to do."""
        folder = Path(folder)
        manifest = _read_manifest(folder)
        raw = {name: _read(folder / name) for name in (WEIGHTS, TOKENIZER)}
        for name, content in raw.items():
            if _sha256(content) != manifest["files"].get(name):
                raise ArtifactError(f"{folder / name} is damaged: its SHA-256 is not the manifest's; {_ADVICE}")
        try:
            tensors = load_tensors(raw[WEIGHTS])
        except SafetensorError as error:
            raise ArtifactError(f"{folder / WEIGHTS} is no safetensors file ({error}); {_ADVICE}") from error
        return cls(folder, manifest, tensors, raw[TOKENIZER].decode())

    @staticmethod
    def save(folder: Path, manifest: Mapping[str, Any], tensors: Tensors, tokenizer_json: str) -> "Artifact":
        """Write atomically (a temporary folder, then a rename), replacing these three files of an older artifact there.

        ``manifest`` needs name, text, encoder, bag_columns, bag_grams, heads and golden; version, space and sums are
        computed.
        Other files in an existing folder are kept. Raises ArtifactError when the folder cannot be written.
        """
        folder = Path(folder)
        weights = save_tensors({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)})
        tokenizer = tokenizer_json.encode()
        full = dict(manifest) | {
            "format_version": FORMAT_VERSION,
            "space": _space(manifest, tensors, tokenizer),
            "files": {WEIGHTS: _sha256(weights), TOKENIZER: _sha256(tokenizer)},
            "version": "",
            "checksum": "",
        }
        full["version"] = f"{manifest['name']}-{_sha256(_render(full))[:12]}"
        full["checksum"] = _sha256(_render(full))
        missing = [key for key in _REQUIRED if key not in full]
        if missing:
            raise ArtifactError(f"a manifest without {', '.join(missing)} cannot be saved")
        _replace(folder, {WEIGHTS: weights, TOKENIZER: tokenizer, MANIFEST: _render(full)})
        return Artifact(folder, full, dict(tensors), tokenizer_json)

    def add(self, tensors: Tensors, section: str, content: Mapping[str, Any]) -> "Artifact":
        """Put tensors and a manifest section in the place of those of that name (tensors ``section.…``) and save: new
        version, same space.

        Raises ArtifactError when a name would touch the encoder, the n-gram channel, the projection or a core section.
        """
        if section in _REQUIRED or section in ("checksum", "metrics", "data"):
            raise ArtifactError(f"section {section!r} belongs to the artifact itself; choose another name")
        core = [name for name in tensors if name.startswith(("encoder.", "bag.", "heads.", "experts.", "space."))]
        if core:
            raise ArtifactError(f"tensor {core[0]!r} belongs to the artifact itself; choose another name")
        manifest = self.manifest | {section: dict(content)}
        kept = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(f"{section}.")}
        return Artifact.save(self.folder, manifest, kept | tensors, self.tokenizer_json)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    raw = _read(path)
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}); {_ADVICE}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format_version"), int):
        raise ArtifactError(f"{path} is damaged or no manifest: it has no format_version; {_ADVICE}")
    if manifest["format_version"] > FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {manifest['format_version']}, this release reads up to {FORMAT_VERSION}; "
            "upgrade millrace, or use an artifact made for this release"
        )
    if manifest["format_version"] < FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {manifest['format_version']}, from before the first release; this release "
            f"reads version {FORMAT_VERSION}: train the artifact again"
        )
    blank = manifest | {"checksum": ""}
    if raw != _render(manifest, nan=True) or manifest.get("checksum") != _sha256(_render(blank, nan=True)):
        raise ArtifactError(f"{path} is damaged: its checksum does not match its content; {_ADVICE}")
    missing = [key for key in _REQUIRED if key not in manifest]
    if missing:
        raise ArtifactError(f"{path} lacks {', '.join(missing)}; {_ADVICE}")
    return dict(json.loads(raw, parse_constant=lambda _: None))  # earlier releases wrote figures that are none as NaN


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); {_ADVICE}") from error


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put files into a folder as one step: readers see the old folder or the new one."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        fresh.chmod(0o755)
        if folder.is_dir():
            for other in folder.iterdir():
                if other.name not in files:
                    (shutil.copytree if other.is_dir() else shutil.copy2)(other, fresh / other.name)
        for name, content in files.items():
            with (fresh / name).open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
        old = folder.with_name(f"{fresh.name}-old")
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        if old.exists():
            shutil.rmtree(old)
    except OSError as error:
        raise ArtifactError(
            f"{folder} cannot be written ({error}); choose a folder with space and write access"
        ) from error


def _render(manifest: Mapping[str, Any], *, nan: bool = False) -> bytes:
    return (json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=nan) + "\n").encode()


def _space(manifest: Mapping[str, Any], tensors: Tensors, tokenizer: bytes) -> str:
    """What a vector depends on: encoder, n-gram channel, mean, projection, tokenizer, text and encoder settings."""
    parts: list[bytes] = [tokenizer, _render(manifest["text"]), _render(manifest["encoder"])]
    for name in _vector_tensors(tensors):
        parts += [name.encode(), str(tensors[name].dtype).encode(), tensors[name].tobytes()]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:12]


def _vector_tensors(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(("encoder.", "bag.", "space.")))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
