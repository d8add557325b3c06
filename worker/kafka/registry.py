"""The schema registry: with which schema a framed value was written. Its API is Confluent's, the client too.

Serialisers put a zero byte and the schema's id (4 bytes) before the value. An id stands for one schema for ever, so
each is asked for once; at `MAX_SCHEMAS` all are forgotten and asked for anew. What the registry does not have, or what
cannot be used, is asked for again after `ASK_AGAIN_S`, so that a flood of such values is no flood of requests.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from worker.config import RegistryConfig
from worker.errors import ConfigError, RegistryError
from worker.kafka.avro import AvroError, AvroReader

FRAME_BYTES: Final = 5
MAX_SCHEMAS: Final = 1000
MAX_REFERENCES: Final = 100
ASK_AGAIN_S: Final = 60.0
CLIENT_OPTIONS: Final[dict[str, str | int | float | bool]] = {
    "timeout": 1.5,
    "max.retries": 2,
    "retries.wait.ms": 200,
    "retries.max.wait.ms": 500,
}
"""Of the registry's client, unless ``registry.options`` says otherwise. The loop stands while it asks: three tries stay
below the 8 s that a transaction may last."""
_NUMBERS: Final = frozenset({*CLIENT_OPTIONS, "cache.capacity", "cache.latest.ttl.sec"})
_NO_SUCH: Final = frozenset({40401, 40402, 40403})
"""The API's codes for a subject, a version, a schema that is not there. A 404 without is another page's: the address is
wrong, and every schema would be missing."""

Json = Callable[[bytes], bytes]


class SchemaRegistry:
    """Turns framed values into JSON: Avro with the schema that the registry has, JSON Schema as it is.

    ``client`` is one of one's own, ``clock`` in seconds. Raises `ConfigError` for settings that the client refuses, and
    where the packages for Avro are missing.
    """

    def __init__(self, config: RegistryConfig, client: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.where: Final = ", ".join(_host(url) for url in config.url.split(","))
        self._client = _connect(config) if client is None else client
        self._clock = clock
        self._readers: dict[int, Json] = {}
        self._refused: dict[int, tuple[float, AvroError]] = {}

    def json_of(self, framed: bytes) -> bytes:
        """The JSON of a framed value.

        Raises `AvroError` for what cannot be read, and `RegistryError` when the registry does not answer or refuses: of
        the value nothing is known then.
        """
        schema_id = int.from_bytes(framed[1:FRAME_BYTES], "big")
        read = self._readers.get(schema_id) or self._learn(schema_id)
        return read(framed[FRAME_BYTES:])

    def examine(self) -> int:
        """How many subjects the registry has. Raises `RegistryError`."""
        return len(self._ask(self._client.get_subjects, "its subjects"))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _learn(self, schema_id: int) -> Json:
        now = self._clock()
        until, refused = self._refused.get(schema_id, (now, None))
        if refused is not None and now < until:
            raise AvroError(refused.reason, refused.detail)
        if len(self._readers) + len(self._refused) >= MAX_SCHEMAS:
            self._readers.clear()
            self._refused.clear()
        try:
            read = self._readers[schema_id] = self._reader(schema_id)
        except AvroError as error:
            self._refused[schema_id] = now + ASK_AGAIN_S, error
            raise
        return read

    def _reader(self, schema_id: int) -> Json:
        schema = self._ask(partial(self._client.get_schema, schema_id), f"schema {schema_id}")
        if schema is None:
            raise AvroError("not_json", f"framed for schema {schema_id}, which the registry at {self.where} has not")
        if schema.schema_type == "JSON":
            return _as_it_is
        if schema.schema_type not in (None, "AVRO"):
            raise AvroError("not_json", f"framed for schema {schema_id}, which is {schema.schema_type}: Avro is read")
        needed: list[str] = []
        self._collect(schema, needed, set())
        try:
            parsed = [json.loads(text) for text in (*needed, schema.schema_str)]
            return AvroReader(parsed[-1], parsed[:-1]).json
        except AvroError as error:
            raise AvroError(error.reason, f"schema {schema_id}: {error.detail}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise AvroError("not_json", f"schema {schema_id} is no JSON") from error

    def _collect(self, schema: Any, needed: list[str], seen: set[str]) -> None:
        """Put the schemas that this one refers to into ``needed``, each behind those that it needs itself."""
        for reference in schema.references or ():
            if reference.name in seen:
                continue
            if len(seen) >= MAX_REFERENCES:
                raise AvroError("too_large", f"a schema that refers to more than {MAX_REFERENCES} others")
            seen.add(reference.name)
            found = self._ask(
                partial(self._client.get_version, reference.subject, reference.version, deleted=True),
                f"{reference.subject} version {reference.version}",
            )
            if found is None:
                raise AvroError("not_json", f"a schema that refers to {reference.subject}, which the registry has not")
            self._collect(found.schema, needed, seen)
            needed.append(found.schema.schema_str)

    def _ask(self, request: Callable[[], Any], what: str) -> Any:
        """The answer, None where the registry has no such thing. Raises `RegistryError`."""
        from confluent_kafka.schema_registry import SchemaRegistryError

        try:
            return request()
        except SchemaRegistryError as error:
            status = error.http_status_code
            if status == 404 and error.error_code in _NO_SUCH:
                return None
            todo = {401: "registry.options", 403: "registry.options", 404: "the path in registry.url"}.get(status)
            mend = f"check {todo}" if todo else "look at its log"
            raise RegistryError(
                f"the schema registry at {self.where}, asked for {what}, answers HTTP {status}: {mend}"
            ) from error
        except Exception as error:
            # Its HTTP client is another one with each release, and so are the errors of that.
            raise RegistryError(
                f"the schema registry at {self.where}, asked for {what}, cannot be reached"
                f" ({type(error).__name__}). Check registry.url and that it runs; nothing is lost, events wait in Kafka"
            ) from error


def _as_it_is(body: bytes) -> bytes:
    return body


def _host(url: str) -> str:
    """Host and port of an address: never its password. Raises `ConfigError`."""
    try:
        parts = urlsplit(url.strip())
        # A / or # in a password ends the address for whoever reads it, and the rest would be told as its path.
        if (
            parts.scheme in ("http", "https")
            and parts.hostname
            and "@" not in parts.path + parts.query + parts.fragment
        ):
            return parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    except ValueError:
        pass
    raise ConfigError(
        "registry.url: not http(s)://HOST:PORT with the path of the API. User and password go into registry.options,"
        " basic.auth.user.info; in an address / # ? @ : and % of theirs are percent-encoded"
    ) from None


def _connect(config: RegistryConfig) -> Any:
    try:
        import fastavro  # noqa: F401
        from confluent_kafka.schema_registry import SchemaRegistryClient
    except ImportError as error:
        raise ConfigError(f"registry.url: {error.name} is missing; pip install 'millrace[avro]'") from error
    options = CLIENT_OPTIONS | config.options
    for name in _NUMBERS & options.keys():
        try:
            options[name] = float(options[name])  # from the environment all are text
        except ValueError:
            raise ConfigError(f"registry.options.{name}: a number is wanted") from None
    try:
        return SchemaRegistryClient({"url": config.url, **options})
    except OSError as error:
        raise ConfigError(f"registry.options: a certificate or key, ssl.*.location: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"registry.options: {error}") from error
