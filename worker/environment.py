"""The environment as configuration: names to keys, values to values, secrets from files.

``MILLRACE_KAFKA__BOOTSTRAP`` is ``kafka.bootstrap``: two underscores between levels. Below ``kafka.options`` and
``registry.options`` one underscore is a dot, for the clients' names have dots and a shell's have not:
``MILLRACE_KAFKA__OPTIONS__SASL_PASSWORD`` is ``sasl.password``. A name that ends in ``_FILE`` gives the file that holds
the value, as Docker and Kubernetes hand out secrets: ``MILLRACE_REDIS__URL_FILE=/run/secrets/redis_url``; but for
`FILE_KEYS`, whose own names end so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from worker.errors import ConfigError

ENV_PREFIX: Final = "MILLRACE_"
MAX_SECRET_BYTES: Final = 64 * 1024
FILE_KEYS: Final = frozenset({"ca_file"})
"""Keys of the configuration that are files themselves: what the environment gives for them is the path."""
_FILE: Final = "_FILE"


class Entry(msgspec.Struct, frozen=True):
    """One setting. ``literal`` values are taken as they stand; others are YAML, so that lists can be given."""

    path: list[str]
    value: str
    where: str
    literal: bool


def entries(env: Mapping[str, str]) -> Iterator[Entry]:
    """The settings in an environment, by name. Raises `ConfigError` for a file that cannot be read.

    Passwords may look like numbers or yes and no; so what goes to the clients and what comes from a file is literal.
    """
    for name, value in sorted(env.items()):
        if not name.startswith(ENV_PREFIX) or "__" not in name:
            continue
        where, literal = f"environment variable {name}", name.endswith(_FILE)
        path = name.removeprefix(ENV_PREFIX).lower().split("__")
        if path[-1] in FILE_KEYS:
            literal = False
        elif literal:
            value, path[-1] = _read(value, where), path[-1].removesuffix(_FILE.lower())
        if len(path) == 3 and path[0] in ("kafka", "registry") and path[1] == "options":
            path[2], literal = path[2].replace("_", "."), True
        yield Entry(path, value, where, literal)


def value_of(env: Mapping[str, str], name: str) -> str | None:
    """The value of a variable that is no key of the configuration, or of the file that ``<name>_FILE`` names.

    Raises `ConfigError` for a file that cannot be read.
    """
    file = env.get(name + _FILE)
    return env.get(name) if file is None else _read(file, f"environment variable {name}{_FILE}")


def _read(file: str, where: str) -> str:
    try:
        with Path(file).open("rb") as secret:
            data = secret.read(MAX_SECRET_BYTES + 1)
        if len(data) > MAX_SECRET_BYTES:
            raise ConfigError(f"{where}: {file} is larger than {MAX_SECRET_BYTES} bytes: no secret is")
        # Editors and `echo` end a file with a line end that is not part of the secret.
        return data.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{where}: {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: {file} is not UTF-8") from error
