"""The golden set: a dozen inputs whose outputs travel with the artifact, so that any machine can check itself."""

from pathlib import Path
from typing import Any

import numpy as np

from model.artifact import Artifact
from model.errors import ArtifactError
from model.scoring import Scorer, load_scorer

TEXTS = (
    "The strings snapped on the second day and nobody answers my mails.",
    "Does what it says, nothing more.",
    "Lovely warm sound, my daughter plays it every evening!",
    "I want to cancel the order I placed this morning.",
    "why was my card declined at the till",
    "set an alarm for half past six",
    "Operating profit rose to EUR 13.1 million from EUR 8.7 million.",
    "屏幕碎了，客服一直不回复，太失望了。",
    "水果很新鲜，下次还会再买👍",
    "我的快递到哪里了？",
    "请把发票开成公司抬头。",
    "这家酒店离地铁站很近，房间一般。",
)
TOLERANCE = 0.02  # absolute, on probabilities and vector entries: covers half precision on other devices


def golden_of(scorer: Scorer) -> dict[str, Any]:
    """The golden section of a manifest: texts and what this scorer answers."""
    probabilities, vectors = _answers(scorer, TEXTS)
    return {
        "texts": list(TEXTS),
        "tolerance": TOLERANCE,
        "probabilities": {head: np.round(p, 5).tolist() for head, p in probabilities.items()},
        "vectors": np.round(vectors, 5).tolist(),
    }


def save_with_golden(folder: Path, manifest: dict[str, Any], tensors: dict[str, Any], tokenizer_json: str) -> Artifact:
    """Save an artifact, let it answer the golden texts, and save it again with those answers."""
    Artifact.save(folder, manifest | {"golden": {}}, tensors, tokenizer_json)
    golden = golden_of(load_scorer(folder, device="cpu", precision="float32"))
    return Artifact.save(folder, manifest | {"golden": golden}, tensors, tokenizer_json)


def verify(folder: Path, *, device: str = "auto") -> float:
    """Load an artifact and recompute its golden set; the largest deviation seen.

    Raises ArtifactError when the folder is damaged or this machine computes something else.
    """
    scorer = load_scorer(folder, device=device)
    golden = Artifact.load(folder).manifest["golden"]
    probabilities, vectors = _answers(scorer, golden["texts"])
    worst, where = float(np.abs(vectors - np.array(golden["vectors"])).max()), "vectors"
    for head, expected in golden["probabilities"].items():
        deviation = float(np.abs(probabilities[head] - np.array(expected)).max())
        if not deviation <= worst:
            worst, where = deviation, head
    if not worst <= golden["tolerance"]:
        raise ArtifactError(
            f"{folder}: {where} deviates by {worst:.3g} from the golden set (tolerance {golden['tolerance']}); "
            "this torch or device computes something else: try --device cpu, and report it with the versions"
        )
    return worst


def _answers(scorer: Scorer, texts: tuple[str, ...] | list[str]) -> tuple[dict[str, Any], Any]:
    encoded = scorer.encode(scorer.prepare(texts))
    return {head: scorer.classify(head, encoded) for head in scorer.labels}, scorer.vectors(encoded)
