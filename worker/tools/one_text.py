"""One text through the model, for people: every head's labels with their probabilities."""

from __future__ import annotations

import msgspec

from model.scoring import Scorer, decide
from worker.config import ModelConfig
from worker.errors import InputError, ModelLoadError


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One head's answer and its probabilities, most probable first: not always the answer, see `model.scoring.decide`.
    ``threshold``: an intent less likely than this is out of scope."""

    task: str
    label: str
    probability: float
    threshold: float | None
    probabilities: dict[str, float]


def load(model: ModelConfig, artifact: str | None) -> Scorer:
    """The scorer of ``artifact``, or of the configuration. Raises `ModelLoadError`; the null model is none."""
    name = artifact or model.artifact
    if name == "null":
        raise ModelLoadError("the null model does not read text; set model.artifact to starter or a folder")
    # Late: from here on torch is needed.
    from model.artifact import resolve
    from model.errors import ArtifactError
    from model.scoring import load_scorer

    try:
        return load_scorer(resolve(name), device=model.device, precision=model.precision)
    except ArtifactError as error:
        raise ModelLoadError(str(error)) from error


def heads_of(scorer: Scorer, task: str) -> list[str]:
    """The head of that name; without one, the heads of that family (``intent``); empty where there is neither."""
    return [task] if task in scorer.labels else [head for head in scorer.labels if head.startswith(f"{task}.")]


def score_text(model: ModelConfig, text: str, *, task: str | None = None, artifact: str | None = None) -> list[Answer]:
    """Answers of the head ``task``, of a family of heads (``intent``), or of all heads.

    Raises `InputError` for an empty text or unknown task, `ModelLoadError` for an artifact that cannot be used.
    """
    if not text.strip():
        raise InputError("--text is empty")
    scorer = load(model, artifact)
    heads = list(scorer.labels) if task is None else heads_of(scorer, task)
    if not heads:
        raise InputError(f"--task {task}: this model has {', '.join(sorted(scorer.labels))}")
    encoded = scorer.encode(scorer.prepare([text]))
    answers = []
    for head in heads:
        row = scorer.classify(head, encoded)
        label = scorer.labels[head][decide(scorer, head, row)[0]]
        ranked = dict(sorted(zip(scorer.labels[head], map(float, row[0]), strict=True), key=lambda pair: -pair[1]))
        probability = ranked[label]
        threshold = scorer.threshold(head)
        if threshold is not None and probability < threshold:
            label = "oos"
        answers.append(
            Answer(task=head, label=label, probability=probability, threshold=threshold, probabilities=ranked)
        )
    return answers
