"""What a recipe says of a data set's extra rows: how many, and how they are made. ``extra.py`` makes them."""

from dataclasses import dataclass, field

from model.errors import DataError


@dataclass(frozen=True)
class BackTranslation:
    """Rows translated there and back by two models (folders or hub names). ``share``: of the training rows.

    ``languages``: codes of the rows' language and of the other one, for models of many languages.
    """

    there: str
    back: str
    share: float = 0.2
    languages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Augmentation:
    """Extra training rows of a data set: ``copies`` of each row, varied, and back-translations of some.

    ``synonyms``, ``edits``: chance of a word to be replaced by a synonym; to be deleted, swapped or doubled by one.
    """

    synonyms: float = 0.0
    edits: float = 0.0
    copies: int = 1
    back_translation: BackTranslation | None = None


def check_augmentation(augment: Augmentation, where: str) -> None:
    """Raises DataError, naming ``where`` and the key, for a share or a number of copies that cannot be."""
    shares = {"synonyms": augment.synonyms, "edits": augment.edits}
    back = augment.back_translation
    if back:
        shares["back_translation.share"] = back.share
        if len(back.languages) not in (0, 2):
            raise DataError(f"{where}.back_translation.languages: {back.languages} are not two codes, or none")
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise DataError(f"{where}.{key}: {value} is not a number from 0 to 1")
    if augment.copies < 0:
        raise DataError(f"{where}.copies: {augment.copies} is not a whole number of 0 or more")
