"""Schemas are asked for once, what is not there not again at once, and a registry that is away is no dead letter."""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import Any

import fastavro
import pytest
from confluent_kafka.schema_registry import RegisteredSchema, Schema, SchemaReference, SchemaRegistryError

import worker.kafka.registry as registry_module
from worker.config import RegistryConfig
from worker.errors import ConfigError, RegistryError
from worker.kafka.avro import AvroError
from worker.kafka.registry import ASK_AGAIN_S, SchemaRegistry

URL = "https://user:SECRET@registry.example.org:8081/api, http://second:8081"


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": key, "type": kind} for key, kind in fields.items()]}


class Client:
    """The library's client without a network."""

    def __init__(self) -> None:
        self.schemas: dict[int, Schema] = {}
        self.subjects: dict[tuple[str, int], Schema] = {}
        self.asked: Counter[Any] = Counter()
        self.error: Exception | None = None
        self.closed = False

    def get_schema(self, schema_id: int) -> Schema:
        return self._answer(self.schemas, schema_id, 40403)

    def get_version(self, subject: str, version: int, deleted: bool) -> RegisteredSchema:
        assert deleted, "a schema that was deleted since is still what the value was written with"
        schema = self._answer(self.subjects, (subject, version), 40401)
        return RegisteredSchema(subject=subject, version=version, schema_id=1, guid=None, schema=schema)

    def get_subjects(self) -> list[str]:
        return self._answer({"": ["a", "b"]}, "", 40401)

    def close(self) -> None:
        self.closed = True

    def _answer(self, table: dict[Any, Any], key: Any, code: int) -> Any:
        self.asked[key] += 1
        if self.error is not None:
            raise self.error
        if key not in table:
            raise SchemaRegistryError(404, code, "SECRET")
        return table[key]


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Setting:
    def __init__(self) -> None:
        self.client, self.clock = Client(), Clock()
        self.registry = SchemaRegistry(RegistryConfig(url=URL), self.client, self.clock)

    def framed(self, schema_id: int, value: Any, named: list[Any] = []) -> bytes:  # noqa: B006 never changed
        known: dict[str, Any] = {}
        for schema in named:
            fastavro.parse_schema(schema, named_schemas=known)
        out = io.BytesIO()
        schema = json.loads(self.client.schemas[schema_id].schema_str or "")
        fastavro.schemaless_writer(out, fastavro.parse_schema(schema, named_schemas=known), value)
        return frame(schema_id, out.getvalue())


def frame(schema_id: int, body: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + body


def avro(schema: Any, *references: SchemaReference) -> Schema:
    return Schema(json.dumps(schema), "AVRO", list(references))


@pytest.fixture
def at() -> Setting:
    return Setting()


def test_each_schema_is_asked_for_once(at: Setting) -> None:
    at.client.schemas = {7: avro(record("E", x="string")), 70_000: avro(record("E", y="int"))}
    for n in range(3):
        assert json.loads(at.registry.json_of(at.framed(7, {"x": str(n)}))) == {"x": str(n)}
        assert json.loads(at.registry.json_of(at.framed(70_000, {"y": n}))) == {"y": n}
    assert at.client.asked == {7: 1, 70_000: 1}


def test_json_schema_is_json_as_it_stands(at: Setting) -> None:
    at.client.schemas = {1: Schema("{}", "JSON")}
    assert at.registry.json_of(frame(1, b'{"x": 1}')) == b'{"x": 1}'


def test_schemas_that_refer_to_others_are_read_with_them(at: Setting) -> None:
    money, item = record("shop.Money", amount="double"), record("shop.Item", price="shop.Money")
    to_money, to_item = SchemaReference("shop.Money", "money", 2), SchemaReference("shop.Item", "item", 1)
    at.client.subjects = {("money", 2): avro(money), ("item", 1): avro(item, to_money)}
    at.client.schemas = {1: avro(record("shop.Order", item="shop.Item", paid="shop.Money"), to_item, to_money)}
    order = {"item": {"price": {"amount": 2.5}}, "paid": {"amount": 1.0}}
    for _ in range(2):
        assert json.loads(at.registry.json_of(at.framed(1, order, [money, item]))) == order
    assert at.client.asked == {1: 1, ("money", 2): 1, ("item", 1): 1}


def test_more_references_than_any_schema_has_are_refused(at: Setting) -> None:
    links = [SchemaReference(f"n.T{n}", f"s{n}", 1) for n in range(registry_module.MAX_REFERENCES + 1)]
    at.client.subjects = {(f"s{n}", 1): avro(record(f"n.T{n}", x="int")) for n in range(len(links))}
    at.client.schemas = {1: avro(record("E", x="int"), *links)}
    with pytest.raises(AvroError, match="more than 100"):
        at.registry.json_of(frame(1, b"\0"))


def test_schemas_that_refer_to_each_other_end(at: Setting) -> None:
    one, two = SchemaReference("n.One", "one", 1), SchemaReference("n.Two", "two", 1)
    at.client.subjects = {
        ("one", 1): avro(record("n.One", x="n.Two"), two),
        ("two", 1): avro(record("n.Two", x="n.One"), one),
    }
    at.client.schemas = {1: avro(record("E", x="n.One"), one)}
    with pytest.raises(AvroError, match="no Avro"):
        at.registry.json_of(frame(1, b"x"))
    assert at.client.asked.total() == 3


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        (None, "which the registry at registry.example.org:8081, second:8081 has not"),
        (Schema('syntax = "proto3";', "PROTOBUF"), "PROTOBUF"),
        (Schema("no json", "AVRO"), "no JSON"),
        (Schema(None, "AVRO"), "no JSON"),
        (Schema("[" * 100_000, "AVRO"), "no JSON"),
        (Schema('{"type": "fixed", "name": "F", "size": "x"}', "AVRO"), "no Avro"),
        (Schema('{"type": "nonsense"}', "AVRO"), "no Avro"),
        (avro(record("E", x="E")), "contains itself"),
        (avro(record("E", x="a.B"), SchemaReference("a.B", "gone", 1)), "refers to gone, which the registry has not"),
    ],
)
def test_what_cannot_be_read_is_told_and_not_asked_for_again_at_once(
    at: Setting, schema: Schema | None, word: str
) -> None:
    at.client.schemas = {} if schema is None else {5: schema}
    for _ in range(50):
        with pytest.raises(AvroError) as told:
            at.registry.json_of(frame(5, b"x"))
        assert word in told.value.detail
        assert "SECRET" not in told.value.detail
    assert at.client.asked[5] == 1
    at.client.schemas = {5: avro("string")}
    at.clock.now_s += ASK_AGAIN_S
    assert at.registry.json_of(at.framed(5, "now")) == b'"now"'


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (ConnectionRefusedError("SECRET"), "cannot be reached"),
        (SchemaRegistryError(503, 50301, "SECRET"), "HTTP 503: look at its log"),
        (SchemaRegistryError(401, 401, "SECRET"), "HTTP 401: check registry.options"),
        (SchemaRegistryError(404, None, "SECRET"), "HTTP 404: check the path in registry.url"),
        (SchemaRegistryError(404, -1, "SECRET"), "HTTP 404: check the path in registry.url"),
    ],
)
def test_a_registry_that_does_not_answer_is_no_fault_of_the_event(at: Setting, error: Exception, word: str) -> None:
    at.client.schemas = {1: avro("string"), 2: avro("string")}
    assert at.registry.json_of(at.framed(1, "known")) == b'"known"'
    at.client.error = error
    with pytest.raises(RegistryError, match="schema 2") as told:
        at.registry.json_of(at.framed(2, "new"))
    assert word in str(told.value)
    assert "SECRET" not in str(told.value)
    assert at.registry.json_of(at.framed(1, "known")) == b'"known"', "what is known needs no registry"
    at.client.error = None
    assert at.registry.json_of(at.framed(2, "new")) == b'"new"', "asked again at once when it is back"


def test_at_the_bound_all_are_forgotten_and_asked_for_anew(at: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "MAX_SCHEMAS", 3)
    at.client.schemas = {n: avro("string") for n in range(3)}
    for n in (0, 1):
        at.registry.json_of(at.framed(n, ""))
    with pytest.raises(AvroError):
        at.registry.json_of(frame(9, b""))  # what is refused is held as well
    at.registry.json_of(at.framed(2, ""))
    at.registry.json_of(at.framed(0, ""))
    assert at.client.asked == {0: 2, 1: 1, 2: 1, 9: 1}


def test_it_counts_subjects_and_closes_its_client(at: Setting) -> None:
    assert at.registry.examine() == 2
    at.registry.close()
    assert at.client.closed


@pytest.mark.parametrize(
    ("url", "options", "word"),
    [
        ("ftp://user:SECRET@a", {}, "registry.url"),
        ("https://KEY:SECRET/x==@a:80", {}, "registry.url"),
        ("https://KEY:SECRET#x==@a:80", {}, "registry.url"),
        ("https://a, http://[SECRET", {}, "registry.url"),
        ("https://a:SECRET", {}, "registry.url"),
        ("a:8081", {}, "registry.url"),
        ("http://a", {"nonsense": "SECRET"}, "nonsense"),
        ("http://a", {"ssl.ca.location": "/not/there"}, "ssl.*.location"),
        ("http://a", {"basic.auth.user.info": "SECRET"}, "basic.auth.user.info"),
        ("http://a", {"timeout": "SECRET"}, "registry.options.timeout: a number is wanted"),
    ],
)
def test_settings_that_the_client_refuses_are_told_without_secrets(
    url: str, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigError) as told:
        SchemaRegistry(RegistryConfig(url=url, options=options))
    assert word in str(told.value)
    assert "SECRET" not in str(told.value)


def test_numbers_from_the_environment_are_numbers() -> None:
    SchemaRegistry(RegistryConfig(url="http://a", options={"timeout": "2.5", "max.retries": "0"})).close()
