"""Self-training: a model labels texts itself where it is sure, and is trained again with them (Yarowsky 1995).

What is written is one more data set of a recipe. Its entry there should say ``guessed: true``, so that the model is not
calibrated on its own guesses, and a ``weight`` below that of real labels; the summary spells the entry out.

It need not help. With TF-IDF and logistic regression on 448 labels of banking77 (accuracy 0.491, three seeds), 0.8 is
reached by 78 texts, 98 % of them rightly labelled, and training on them too gives 0.488: what is sure teaches little.
"""

import heapq
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.data import columns_of
from model.errors import DataError
from model.scoring import Scorer, check_head, decide
from model.training.unlabelled import Unlabelled, score, write_rows

WEIGHT = 0.3  # of the data set in the recipe, to begin with


def run_selftrain(
    scorer: Scorer,
    head: str,
    path: Path,
    out: Path,
    *,
    confidence: float = 0.95,
    per_class_max: int = 1000,
    fields: Sequence[str] = (),
    labelled: Sequence[Path] = (),
) -> dict[str, Any]:
    """Label the texts of ``path`` whose answer has a probability of at least ``confidence``, at most ``per_class_max``
    of a class, the surest ones, and write them to ``out`` as JSON Lines in the order of the file.

    ``fields``: of the text; empty: those that the head was trained on. An intent head's own threshold is respected
    where it is the higher. Texts of the ``labelled`` files are passed over. A row: text, confidence, line, model, and
    the label under the field that the head was trained on (``intent`` for ``intent.shop``). Returns the counts, and the
    data set's entry for a recipe. Memory: one batch and the rows that are kept. Raises DataError for a malformed file
    (file, line, reason), an unknown head, bad settings, or when no text is sure enough.
    """
    labels = check_head(scorer, head)
    if not 0 < confidence <= 1:
        raise DataError(f"confidence {confidence} is not above 0 and at most 1")
    if per_class_max < 1:
        raise DataError(f"at most {per_class_max} rows of a class: give 1 or more")
    asked = max(confidence, scorer.threshold(head) or 0.0)
    least = float(np.float32(asked))  # as probabilities are
    columns = columns_of(head, scorer.head(head))
    source = Unlabelled(Path(path), fields or columns.text, labelled)
    kept: list[list[tuple[float, int, str]]] = [[] for _ in labels]
    sure, read, top_max = 0, 0, -math.inf
    for batch in source.batches():
        _, probabilities = score(scorer, head, batch)
        read += len(batch)
        guesses = decide(scorer, head, probabilities)
        tops = probabilities[np.arange(len(guesses)), guesses]
        top_max = max(top_max, float(tops.max()))
        for (line, text, _), guess, top in zip(batch, guesses.tolist(), tops.tolist(), strict=True):
            if top < least:
                continue
            sure += 1
            own, item = kept[guess], (top, -line, text)  # of equally sure ones the earlier
            if len(own) < per_class_max:
                heapq.heappush(own, item)
            else:
                heapq.heappushpop(own, item)
    if not sure:
        raise DataError(
            f"{path}: none of {read} texts reaches {asked:.3f} on head {head}"
            + (f" (the surest: {top_max:.3f}); lower the confidence" if read else ": all are blank or known")
        )
    found = [(-line, text, label, top) for label, own in zip(labels, kept, strict=True) for top, line, text in own]
    rows = [
        {"text": text, "confidence": round(top, 5), "line": line, "model": scorer.version, columns.label: label}
        for line, text, label, top in sorted(found)
    ]
    write_rows(Path(out), rows)
    entry = {
        "name": Path(out).stem,
        "file": Path(out).name,
        "labels": {head: columns.label},
        "weight": WEIGHT,
        "guessed": True,
    }
    return {
        "head": head,
        "model": scorer.version,
        "confidence": asked,
        **source.counts(),
        "unsure": read - sure,
        "over_the_cap": sure - len(rows),
        "written": len(rows),
        "by_class": {label: len(own) for label, own in zip(labels, kept, strict=True) if own},
        "out": str(out),
        "dataset": entry,
    }
