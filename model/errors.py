"""Errors of the model room.

    ModelError
    ├── ArtifactError   an artifact folder is damaged, too new or incomplete
    ├── DataError       a data or recipe file is malformed (names file and line)
    └── DivergedError   a training run's numbers are no longer finite

Each message says what is wrong, where, and what to do about it.
"""


class ModelError(Exception):
    """Base of all errors raised on purpose by ``model``."""


class ArtifactError(ModelError):
    """An artifact cannot be trusted or read."""


class DataError(ModelError):
    """A data file or recipe cannot be used as it is."""


class DivergedError(ModelError):
    """Training with these settings leads to losses that are no numbers."""
