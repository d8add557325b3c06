"""Figures by parts of the rows: where a model does worse than its overall figure tells.

A slicing gives every row a name; ``slice_figures`` measures each name's rows against the whole. With many slices some
lie below the whole by chance: about one in forty of those with a flag's size would, were there no difference at all.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model import metrics
from model.data import Row
from model.errors import DataError
from model.text import is_chinese
from model.warmth import EARLIER, MISSING, by_warmth, earlier_rows, user_of

VALUES_MAX = 20  # of a field; the rarer values are put together
OTHER = "(other)"
_LATIN_WORD = re.compile(r"[A-Za-zÀ-ɏ]+")
_MIXED = 0.1  # from this share of the other script on a text is mixed

Ints = npt.NDArray[np.int64]


def language(text: str) -> str:
    """``Chinese``, ``English``, ``mixed`` or ``neither``, by script: Chinese characters against Latin words.

    Any Latin script counts as English. A text is mixed when the rarer of the two has a tenth of the units or more.
    """
    chinese, latin = sum(map(is_chinese, text)), len(_LATIN_WORD.findall(text))
    if not chinese + latin:
        return "neither"
    share = chinese / (chinese + latin)
    if _MIXED <= share <= 1 - _MIXED:
        return "mixed"
    return "Chinese" if share > 0.5 else "English"


def quartiles(values: npt.NDArray[Any], unit: str) -> tuple[list[str], list[str]]:
    """Every value's quartile as a name (``<= 12 characters``, ``13-40 characters``, …), and the names in order.

    values: numbers [n], n >= 1. Equal values share a quartile, so there may be fewer than four; no two have one name.
    """
    # Not np.quantile: it makes floats of whole numbers, and large ones that differ become one.
    inner = np.unique(np.sort(values)[np.ceil(np.array([0.25, 0.5, 0.75]) * len(values)).astype(int) - 1])
    place = np.searchsorted(inner, values)  # a value equal to a bound belongs below it
    names = {
        k: f"{_number(values[place == k].min())}–{_number(values[place == k].max())} {unit}".rstrip()
        for k in np.unique(place)
    }
    return [names[k] for k in place], list(names.values())


def by_language(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Each text's ``language``, and the languages that occur."""
    found = [language(text) for text in texts]
    return found, [name for name in ("Chinese", "English", "mixed", "neither") if name in found]


def by_length(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Each text's length quartile in characters, and the quartiles from short to long."""
    return quartiles(np.array([len(text) for text in texts]), "characters")


def by_field(rows: Sequence[Row], field: str) -> tuple[list[str], list[str]]:
    """Each row's value of a field, and the values, most frequent first; numbers of many values by quartile.

    Raises DataError when no row has the field.
    """
    values = [row.get(field) for row in rows]
    there = [value for value in values if value is not None]
    if not there:
        known = sorted({key for row in rows for key in row})
        raise DataError(f"--slice {field}: no row has this field; the rows have {', '.join(known)}")
    if all(map(_is_number, values)) and len(set(there)) > VALUES_MAX:
        return quartiles(np.array(there, object), "")
    names = [MISSING if value is None else str(value) for value in values]
    counts = Counter(names).most_common()
    kept = [name for name, _ in counts[:VALUES_MAX]]
    if len(counts) > VALUES_MAX:
        common = set(kept)
        return [name if name in common else OTHER for name in names], [*kept, OTHER]
    return names, kept


def by_user(rows: Sequence[Row], before: Iterable[str | None] = ()) -> tuple[list[str], list[str]]:
    """Each row's band by how many rows of its user came before, see ``earlier_rows``, and the bands that occur, from
    users that are new to those with many; no band where no row names a user."""
    if not any(user_of(row) is not None for row in rows):
        return [], []
    return by_warmth(earlier_rows(rows, before))


def slice_figures(truth: Ints, guess: Ints, classes: int, names: Sequence[str], order: Sequence[str]) -> list[Any]:
    """Figures of each slice: value, n, accuracy with interval, macro_f1, gap to the whole's accuracy and whether it is
    flagged, see ``metrics.lies_below``.

    truth, guess int64 [n] in [0, classes); names [n]. Only accuracy is compared: macro-F1 runs over the classes that
    occur, which differ from slice to slice.
    """
    whole = metrics.accuracy(truth, guess)
    place = np.array(names)
    figures = []
    for name in order:
        own = place == name
        if not own.any():
            continue
        matrix = metrics.confusion(truth[own], guess[own], classes)
        accuracy, n = metrics.accuracy(truth[own], guess[own]), int(own.sum())
        low, high = metrics.bootstrap(matrix)["accuracy"]
        figures.append(
            {
                "value": name,
                "n": n,
                "accuracy": round(accuracy, 5),
                "interval": [round(low, 5), round(high, 5)],
                "macro_f1": round(metrics.macro_f1(truth[own], guess[own], classes), 5),
                "gap": round(accuracy - whole, 5),
                "flagged": metrics.lies_below(n, (low, high), whole),
            }
        )
    return figures


def all_slices(
    texts: Sequence[str],
    rows: Sequence[Row],
    fields: Sequence[str],
    truth: Ints,
    guess: Ints,
    classes: int,
    before: Iterable[str | None] = (),
) -> list[Mapping[str, Any]]:
    """Slices by language, length, the user's earlier events and every field of ``fields``: ``{"by": name, "figure":
    "accuracy", "slices": slice_figures}`` each.

    texts, rows, truth and guess belong to each other; ``before``: users of what came before the rows, one an event. A
    slicing with one slice tells nothing and is left out, unless it was asked for by field. Raises DataError as
    ``by_field``.
    """
    cuts = {"language": by_language(texts), "length": by_length(texts), EARLIER: by_user(rows, before)}
    cuts = {by: cut for by, cut in cuts.items() if len(cut[1]) > 1} | {field: by_field(rows, field) for field in fields}
    return [
        {"by": by, "figure": "accuracy", "slices": slice_figures(truth, guess, classes, *cut)}
        for by, cut in cuts.items()
    ]


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    )


def _number(value: Any) -> str:
    """In full, so that numbers that differ have names that do."""
    return str(value).removesuffix(".0")
