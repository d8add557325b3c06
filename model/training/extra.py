"""Extra training rows: variants and back-translations of a data set's own rows, as its recipe's ``augment`` asks.

Back-translation after Sennrich, Haddow and Birch (2016): into another language and back. Every row draws from a stream
of its own, made of seed, data set and text, so that the order of the rows is of no consequence.
"""

import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from model.data import Example, read_rows
from model.errors import ModelError
from model.training.augment import vary
from model.training.augmentation import Augmentation, BackTranslation
from model.training.recipe import Recipe

if TYPE_CHECKING:
    from model.training.translate import Translator

LENGTH_RATIO_MAX = 2.5  # a back-translation that many times longer or shorter than its text went astray

Made = tuple[int, str]  # (row that it is made from, text)


def extra_rows(
    recipe: Recipe,
    examples: Sequence[Example],
    dataset: npt.NDArray[np.int64],
    free: npt.NDArray[np.bool_],
    keep: Path | None = None,
) -> list[Made]:
    """Extra rows of all data sets that ask for them, each as (row that it is made from, text).

    dataset int64 [n]: each row's data set. free bool [n]: rows that may be used. ``keep``: folder for
    back-translations, which take long: a run that goes on reads them from there. Raises ModelError when a translation
    model cannot be had.
    """
    extra: list[Made] = []
    for d, spec in enumerate(recipe.datasets):
        if spec.augment is None:
            continue
        texts = {row: examples[row].text for row in np.flatnonzero((dataset == d) & free).tolist()}
        seed = f"{recipe.seed} {spec.name}"
        made = list(_variants(texts, spec.augment, seed))
        if spec.augment.back_translation:
            path = keep and keep / f"back_translations.{d}.jsonl"
            made += _back_translations(texts, spec.augment.back_translation, seed, path)
        extra += _distinct(made, examples, np.flatnonzero(dataset == d).tolist())
    return extra


def _variants(texts: Mapping[int, str], settings: Augmentation, seed: str) -> Iterator[Made]:
    for copy in range(settings.copies):
        for row, text in texts.items():
            rng = _stream(f"{seed} {copy} {text}")
            yield row, vary(text, rng, synonyms=settings.synonyms, edits=settings.edits)


def _stream(seed: str) -> random.Random:
    return random.Random(seed.encode("utf-8", "surrogatepass"))  # noqa: S311 - wants to be repeatable


def _distinct(made: Sequence[Made], examples: Sequence[Example], own: Sequence[int]) -> list[Made]:
    """Without repeats, texts that the data set has (held ones among them), and texts that different labels lead to."""
    known = {examples[row].text for row in own}
    first: dict[str, int] = {}
    doubtful: set[str] = set()
    for row, text in made:
        before = first.setdefault(text, row)
        if (examples[before].labels, examples[before].outside) != (examples[row].labels, examples[row].outside):
            doubtful.add(text)
    return [(row, text) for text, row in first.items() if text not in known and text not in doubtful]


def _back_translations(texts: Mapping[int, str], settings: BackTranslation, seed: str, path: Path | None) -> list[Made]:
    """A share of the rows, translated there and back, from the file at ``path`` if it was made of the same."""
    rows = [row for row, text in texts.items() if _stream(f"{seed} back {text}").random() < settings.share]
    content = repr((settings, [(row, texts[row]) for row in rows]))
    made_of = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    if path and path.exists():
        lines = [line for _, line in read_rows(path)]
        if lines and lines[0].get("made_of") == made_of:
            return [(line["row"], line["text"]) for line in lines[1:]]
    made = _there_and_back(rows, [texts[row] for row in rows], settings)
    if path:
        _write(path, [{"made_of": made_of}, *({"row": row, "text": text} for row, text in made)])
    return made


def _there_and_back(rows: Sequence[int], texts: Sequence[str], settings: BackTranslation) -> list[Made]:
    from model.training.translate import Translator  # lazy: training without back-translation needs no such model

    languages = settings.languages
    there, back = Translator(settings.there, languages), Translator(settings.back, languages[::-1])
    results = _translated(back, _translated(there, dict(enumerate(texts))))
    return [(rows[i], result) for i, result in results.items() if _plausible(texts[i], result)]


def _translated(translator: "Translator", texts: Mapping[int, str]) -> dict[int, str]:
    """Translations of the texts that the model reads whole: half a text may have lost what its label rests on."""
    fits = translator.fits(list(texts.values()))
    whole = {i: text for (i, text), own in zip(texts.items(), fits, strict=True) if own}
    return dict(zip(whole, translator.translate(list(whole.values())), strict=True))


def _plausible(text: str, result: str) -> bool:
    """Whether a back-translation is of about its text's length: models that lose the thread stop early or repeat."""
    shorter, longer = sorted((len(text), len(result)))
    return bool(result.strip()) and longer <= LENGTH_RATIO_MAX * shorter


def _write(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    fresh = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("w", encoding="utf-8") as handle:
            handle.writelines(json.dumps(line) + "\n" for line in lines)  # ASCII: lone surrogates survive
        os.replace(fresh, path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error}); free the disk or give another --out") from error
