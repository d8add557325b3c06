"""Errors as a tree. Foreign errors become ours at the edge, ``raise ... from``.

MillraceError               said to people in one line; the exit code is ``exit_code``
├── ConfigError             (2) a key of the configuration is missing, unknown or wrong
├── KafkaError              (3) the broker cannot be reached, or refuses
│   ├── KafkaRefusedError   password, certificate or rights
│   ├── TopicError          a topic is missing, or has the wrong partitions
│   └── OffsetLostError     a partition's next offset is gone: stopped rather than skipped
├── StoreError              (4) Redis cannot be reached, or refuses
│   └── FenceMovedError     another writer owns the shard now
├── StoreRefusedError       (4) Redis refuses our password, rights or certificate: waiting does not help
├── ModelLoadError          (5) the artifact is missing, damaged, or of a newer format
├── DeviceError             (5) the device hangs or fails for good, or has no memory for even one text
├── RegistryError           (3) the schema registry cannot be reached, or refuses
└── InputError              (6) a file given on the command line cannot be used
"""

from __future__ import annotations

from typing import ClassVar


class MillraceError(Exception):
    """Something that a person can mend. The message says what, where, and what to do."""

    exit_code: ClassVar[int] = 1


class ConfigError(MillraceError):
    """The configuration is wrong; the message names the key."""

    exit_code = 2


class KafkaError(MillraceError):
    """The broker cannot be reached, or refuses."""

    exit_code = 3


class KafkaRefusedError(KafkaError):
    """The broker refuses our password or rights, or we its certificate: waiting does not help."""


class TopicError(KafkaError):
    """A topic is missing, or is not as the contract wants it."""


class OffsetLostError(KafkaError):
    """The next offset of a partition no longer exists: skipping would lose events unseen."""


class RegistryError(MillraceError):
    """The schema registry does not answer, or refuses: what an event says cannot be known without it."""

    exit_code = KafkaError.exit_code


class StoreError(MillraceError):
    """Redis cannot be reached, or refuses."""

    exit_code = 4


class FenceMovedError(StoreError):
    """The fence is not where this writer left it: another writer owns the shard."""


class StoreRefusedError(MillraceError):
    """Redis refuses our password, rights or certificate: waiting does not help, so this is no `StoreError`."""

    exit_code = StoreError.exit_code


class ModelLoadError(MillraceError):
    """The artifact cannot be used."""

    exit_code = 5


class DeviceError(MillraceError):
    """The device cannot be worked with. The process ends, so that its partitions move and a supervisor starts anew."""

    exit_code = 5


class InputError(MillraceError):
    """A file or argument given by a person cannot be used."""

    exit_code = 6
