"""Order of writing, positions and refusals of the alerts role, with a producer that the test holds back."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiokafka.errors import KafkaTimeoutError
from faust.auth import SASLCredentials, SSLCredentials
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from schemas.folds import FormatError
from schemas.scores import Alert, Opinion
from schemas.topics import ALERTS_OPINION
from tests.opinions import burst_on_lamp, opinion, plain, stream
from worker.alerts import watch as watch_module
from worker.alerts.faust_app import broker_urls, credentials
from worker.alerts.watch import POSITION_KEY, OpinionWatch, Position, changelog_name
from worker.config import AlertsConfig, Config, KafkaConfig
from worker.errors import ConfigError, KafkaError, TopicError
from worker.metrics import AlertsMetrics

CONFIG = Config()
CHANGELOG = changelog_name(CONFIG)


class HeldProducer:
    """Keeps what is sent; acknowledges only topics in ``open``."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, bytes | None, int | None]] = []
        self.open = {ALERTS_OPINION, CHANGELOG}
        self.waiting: list[asyncio.Future[None]] = []

    async def send(
        self, topic: str, key: bytes, value: bytes | None, partition: int | None, *_: object
    ) -> asyncio.Future[None]:
        self.sent.append((topic, key, value, partition))
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if topic in self.open:
            acknowledged.set_result(None)
        else:
            self.waiting.append(acknowledged)
        return acknowledged


def watching() -> tuple[OpinionWatch, HeldProducer]:
    watch, producer = OpinionWatch(CONFIG, AlertsMetrics(CollectorRegistry())), HeldProducer()
    watch.app = SimpleNamespace(producer=producer, started=True, rebalancing=False)
    watch.open([0])
    return watch, producer


class FailingProducer:
    """Gives up the record of that number, like a client a batch: what comes behind it is delivered all the same."""

    def __init__(self, fails_at: int | None) -> None:
        self.fails_at, self.sends = fails_at, 0
        self.delivered: list[tuple[str, bytes, bytes | None]] = []

    async def send(self, topic: str, key: bytes, value: bytes | None, *_: object) -> asyncio.Future[None]:
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.sends == self.fails_at:
            acknowledged.set_exception(KafkaTimeoutError())
        else:
            self.delivered.append((topic, key, value))
            acknowledged.set_result(None)
        self.sends += 1
        return acknowledged

    @property
    def changelog(self) -> dict[bytes, bytes | None]:
        """As compaction would leave it."""
        return {key: value for topic, key, value in self.delivered if topic == CHANGELOG}

    @property
    def alerts(self) -> list[Alert]:
        """Without evidence, which a restart may lessen, and each once."""
        values = [value or b"" for topic, _, value in self.delivered if topic == ALERTS_OPINION]
        alerts = plain([msgspec.json.decode(each, type=Alert) for each in values])
        alerts = [msgspec.structs.replace(each, evidence=None) for each in alerts]
        return [alert for i, alert in enumerate(alerts) if alert not in alerts[:i]]


def record(offset: int, value: Opinion | bytes, partition: int = 0) -> Any:
    data = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return SimpleNamespace(partition=partition, offset=offset, timestamp=1_800_000_000_000, value=data)


async def feed(watch: OpinionWatch, opinions: list[Opinion]) -> None:
    await watch.feed(0, [record(offset, each) for offset, each in enumerate(opinions)])


def test_alerts_go_before_states_and_the_position_last() -> None:
    async def go() -> None:
        watch, producer = watching()
        await feed(watch, stream(44, 10, burst_on_lamp))
        producer.open.clear()
        writing = asyncio.ensure_future(watch.write())
        await asyncio.wait([writing], timeout=0.05)
        alerts = [topic for topic, *_ in producer.sent]
        assert alerts
        assert set(alerts) == {ALERTS_OPINION}, "no state before its alert is acknowledged"
        producer.open |= {CHANGELOG, ALERTS_OPINION}
        for each in producer.waiting:
            each.set_result(None)
        await writing
        states = producer.sent[len(alerts) :]
        assert {topic for topic, *_ in states} == {CHANGELOG}
        assert {partition for *_, partition in states} == {0}
        assert [key for _, key, *_ in states] == [b"item:kettle", b"item:lamp", b"item:tent", POSITION_KEY]
        assert states[-1][2] is not None
        assert Position.from_bytes(states[-1][2]).next_offset == 44 * 10 * 3
        before = len(producer.sent)
        await watch.write()
        assert len(producer.sent) == before, "nothing new, nothing written"

    asyncio.run(go())


def test_reading_waits_when_too_much_is_unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "MAX_UNWRITTEN", 5)

    async def go() -> None:
        watch, producer = watching()
        producer.open.clear()
        many = [opinion(f"item:{n}", 1_000_000, 0.5, n) for n in range(20)]
        feeding = asyncio.ensure_future(feed(watch, many))
        await asyncio.wait([feeding], timeout=0.05)
        assert not feeding.done()
        assert watch.positions({0: 0}, {0: 20}) == {0: 5}
        producer.open |= {CHANGELOG, ALERTS_OPINION}
        for each in producer.waiting:
            each.set_result(None)
        await feeding
        assert watch.positions({0: 0}, {0: 20}) == {0: 20}

    asyncio.run(go())


async def lived(producer: FailingProducer, opinions: list[Opinion], before: dict[bytes, bytes | None]) -> OpinionWatch:
    """A process that begins with the changelog, reads on from its position to the end, fails or not, and shuts down."""
    watch = OpinionWatch(CONFIG, AlertsMetrics(CollectorRegistry()))
    watch.app = SimpleNamespace(producer=producer, started=True, rebalancing=False)
    for key, value in before.items():
        watch.recover(0, key, value)
    watch.open([0])
    first = watch.positions({0: 0}, {0: len(opinions)})[0]
    feeding = asyncio.ensure_future(
        watch.feed(0, [record(offset, each) for offset, each in enumerate(opinions) if offset >= first])
    )
    while not feeding.done():
        await watch.write()  # as the role does, beside the feed, which writes for itself too
        await asyncio.sleep(0)
    await feeding
    await watch.release()
    return watch


BURST = stream(44, 4, burst_on_lamp)


async def uninterrupted() -> FailingProducer:
    producer = FailingProducer(None)
    assert (await lived(producer, BURST, {})).failure is None
    return producer


@settings(max_examples=60, deadline=None)
@given(part=st.floats(0, 1))
def test_wherever_a_write_is_given_up_the_next_process_misses_no_opinion(part: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch_module, "MAX_UNWRITTEN", 2)
        whole = asyncio.run(uninterrupted())
        failing, next_one = FailingProducer(round(part * (whole.sends - 1))), FailingProducer(None)
        watch = asyncio.run(lived(failing, BURST, {}))
        assert isinstance(watch.failure, KafkaTimeoutError)
        asyncio.run(lived(next_one, BURST, failing.changelog))
    assert failing.changelog | next_one.changelog == whole.changelog
    next_one.delivered += failing.delivered
    assert next_one.alerts == whole.alerts


@pytest.mark.parametrize("behind", ["write", "feed", "release"])
def test_who_waits_behind_a_write_that_fails_writes_nothing(monkeypatch: pytest.MonkeyPatch, behind: str) -> None:
    async def go() -> None:
        watch, producer = watching()
        producer.open.clear()
        calm = [opinion(f"item:{n}", 1_000_000, 0.5, n) for n in range(4)]
        await feed(watch, calm[:2])
        failing = asyncio.ensure_future(watch.write())
        await asyncio.wait([failing], timeout=0.01)
        monkeypatch.setattr(watch_module, "MAX_UNWRITTEN", 1 if behind == "feed" else 9)
        feeding = asyncio.ensure_future(watch.feed(0, [record(n, calm[n]) for n in (2, 3)]))
        await asyncio.wait([feeding], timeout=0.01)
        waiting = [feeding, *([asyncio.ensure_future(getattr(watch, behind)())] if behind != "feed" else [])]
        await asyncio.wait(waiting, timeout=0.01)
        producer.open |= {CHANGELOG, ALERTS_OPINION}
        failed, *others = producer.waiting
        failed.set_exception(KafkaTimeoutError())
        for each in others:
            each.set_result(None)
        await asyncio.gather(failing, *waiting)
        assert isinstance(watch.failure, KafkaTimeoutError)
        assert [key for _, key, *_ in producer.sent] == [b"item:0", b"item:1"]

    asyncio.run(go())


@pytest.mark.parametrize("held", [CHANGELOG, ALERTS_OPINION])
def test_a_write_that_outlives_the_hand_over_sends_nothing_behind_it(
    monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    monkeypatch.setattr(watch_module, "RELEASE_TIMEOUT_S", 0.01)

    async def go() -> None:
        watch, producer = watching()
        producer.open.remove(held)
        bad = [opinion("item:0", 1_000_000 + 1000 * n, 0.99, n) for n in range(200)]
        await feed(watch, bad)
        writing = asyncio.ensure_future(watch.write())
        await asyncio.wait([writing], timeout=0.01)
        before = len(producer.sent)
        await watch.release()
        for each in producer.waiting:
            each.set_result(None)
        await writing
        assert len(producer.sent) == before > 0
        assert watch.failure is None

    asyncio.run(go())


def test_what_lies_below_the_position_or_on_other_partitions_is_not_fed() -> None:
    async def go() -> None:
        watch, producer = watching()
        await watch.feed(0, [record(7, opinion("item:lamp", 1_000_000, 0.5, 7))])
        await watch.feed(0, [record(3, opinion("item:tent", 1_000_000, 0.5, 3))])
        await watch.feed(5, [record(9, opinion("item:tent", 1_000_000, 0.5, 3), partition=5)])
        await watch.write()
        assert [key for _, key, *_ in producer.sent] == [b"item:lamp", POSITION_KEY]

    asyncio.run(go())


def test_positions_follow_the_changelog_and_what_is_left_of_the_topic() -> None:
    async def go() -> None:
        watch, _ = watching()
        watch.recover(1, POSITION_KEY, Position(50, 123).to_bytes())
        watch.recover(2, POSITION_KEY, Position(50, 123).to_bytes())
        watch.recover(2, POSITION_KEY, None)
        watch.open([1, 2])
        assert sorted(watch.partitions()) == [0, 1, 2]
        assert watch.positions({0: 4, 1: 10, 2: 0}, {0: 9, 1: 60, 2: 0}) == {0: 4, 1: 50, 2: 0}
        # Expired opinions are skipped, and said.
        assert watch.positions({1: 55}, {1: 60}) == {1: 55}
        assert watch.failure is None
        assert watch.positions({1: 0}, {1: 49}) == {}
        assert isinstance(watch.failure, TopicError)
        well, _details = watch.health()
        assert not well

    asyncio.run(go())


@pytest.mark.parametrize(("known", "refused"), [("", False), ("new", False), ("old", True)])
def test_a_position_of_another_topic_is_refused_however_far_the_new_one_has_come(known: str, refused: bool) -> None:
    watch = OpinionWatch(CONFIG, AlertsMetrics(CollectorRegistry()))
    watch.topic_id = "new"
    watch.recover(0, POSITION_KEY, Position(50, 123, 0, known).to_bytes())
    watch.open([0])
    assert isinstance(watch.failure, TopicError) == refused
    assert watch.partitions() == ([] if refused else [0])


def test_it_is_ready_while_it_runs_and_kafka_takes_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        watch, producer = watching()
        assert watch.health()[0]
        watch.app.rebalancing = True
        assert not watch.health()[0], "states are being read back"
        watch.app.rebalancing = False
        watch.kafka_answers = False
        assert not watch.health()[0]
        watch.kafka_answers = True
        producer.open.clear()
        await feed(watch, stream(44, 10, burst_on_lamp))
        writing = asyncio.ensure_future(watch.write())
        await asyncio.wait([writing], timeout=0.05)
        assert watch.health()[0], "a write may take its time"
        monkeypatch.setattr(watch_module, "STALL_S", 0.01)
        assert not watch.health()[0]
        producer.open |= {CHANGELOG, ALERTS_OPINION}
        for each in producer.waiting:
            each.set_result(None)
        await writing
        assert watch.health()[0]

    asyncio.run(go())


def test_a_newer_changelog_is_refused() -> None:
    async def go() -> None:
        watch, _ = watching()
        watch.recover(1, b"item:lamp", b"\x63")
        watch.open([1])
        assert isinstance(watch.failure, KafkaError)
        assert "format version 99" in str(watch.failure)

    asyncio.run(go())


@pytest.mark.parametrize("data", [b"", b"\x02\x92\x01\x01", b"\x01\x91", b"\x01"])
def test_other_positions_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="position"):
        Position.from_bytes(data)


def test_position_bytes_of_earlier_releases_stay_readable() -> None:
    assert Position.from_bytes(bytes.fromhex("019232cd0400")) == Position(50, 1024)
    assert Position.from_bytes(bytes.fromhex("019332cd040007")) == Position(50, 1024, 7)
    # Written down: the next release must read it.
    assert Position(50, 1024, 7, "id").to_bytes() == bytes.fromhex("019432cd040007a26964")


def test_changed_rules_are_taken_up_while_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    deaf = "rules:\n  - {name: deaf, metric: negative_share, threshold: 1000}\n"
    file.write_text(deaf)
    config = Config(alerts=AlertsConfig(rules=str(file)))
    clock = [1000.0]
    monkeypatch.setattr(watch_module.time, "monotonic", lambda: clock[0])

    def statuses(change: bytes | None) -> list[str]:
        async def scenario() -> list[bytes | None]:
            file.write_text(deaf)
            watch, producer = OpinionWatch(config, AlertsMetrics(CollectorRegistry())), HeldProducer()
            watch.app = SimpleNamespace(producer=producer, started=True, rebalancing=False)
            watch.open([0])
            opinions = stream(60, 10, burst_on_lamp)
            for offset, each in enumerate(opinions):
                if offset == 300 and change is not None:
                    file.write_bytes(change)
                    clock[0] += watch_module.RULES_INTERVAL_S
                watch.reload_rules()
                await watch.feed(0, [record(offset, each)])
            await watch.write()
            return [value for topic, _, value, _ in producer.sent if topic == ALERTS_OPINION]

        return [msgspec.json.decode(value or b"")["status"] for value in asyncio.run(scenario())]

    assert statuses(None) == []
    assert statuses(deaf.replace("1000", "5").encode())[0] == "opened"
    assert statuses(b"rules: nonsense") == []


def test_brokers_and_credentials_are_passed_on() -> None:
    kafka = KafkaConfig(bootstrap="a:1, b:2")
    assert broker_urls(kafka) == ["kafka://a:1", "kafka://b:2"]
    assert credentials(kafka) is None
    secret = {"sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "u", "sasl.password": "p"}
    plain = credentials(KafkaConfig(options={**secret, "security.protocol": "SASL_PLAINTEXT"}))
    assert isinstance(plain, SASLCredentials)
    assert (plain.username, plain.password, plain.mechanism.value) == ("u", "p", "SCRAM-SHA-512")
    assert plain.ssl_context is None
    both = credentials(KafkaConfig(options={**secret, "security.protocol": "sasl_ssl"}))
    assert isinstance(both.ssl_context, ssl.SSLContext)
    assert isinstance(credentials(KafkaConfig(options={"security.protocol": "SSL"})), SSLCredentials)


@pytest.mark.parametrize(
    "options",
    [
        {"ssl.certificate.location": "x"},
        {"security.protocol": "MAGIC"},
        {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "MAGIC"},
        {"security.protocol": "SSL", "ssl.ca.location": "/nowhere.pem"},
    ],
)
def test_security_that_cannot_be_passed_on_is_refused(options: dict[str, str | int | float | bool]) -> None:
    with pytest.raises(ConfigError, match=r"kafka\.options"):
        credentials(KafkaConfig(options=options))
