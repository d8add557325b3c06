"""Secrets by reference: ``env:NAME`` or ``file:/path``. The value is never logged and never part of an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from worker.errors import ConfigError

MAX_SECRET_BYTES = 64 * 1024


def read_secret(reference: str, env: Mapping[str, str], where: str) -> str:
    """What the reference points to, without white space around it. ``where`` is the key, for the error.

    Raises `ConfigError` when there is nothing.
    """
    kind, _, name = reference.partition(":")
    if kind == "env":
        value = env.get(name, "")
        if not value.strip():
            raise ConfigError(f"{where}: the environment variable {name} is not set")
        return value.strip()
    try:
        with Path(name).open("rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
        value = data.decode("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{where}: file {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: file {name} is not UTF-8 text") from error
    if not value or len(data) > MAX_SECRET_BYTES:
        raise ConfigError(f"{where}: file {name} is empty or larger than {MAX_SECRET_BYTES} bytes")
    return value
