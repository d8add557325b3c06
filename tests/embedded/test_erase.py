"""A person is forgotten: in Redis, in features, among the dead letters; and no replay or rebuild brings them back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis
from click.testing import CliRunner
from confluent_kafka import Producer

from model.null import NullScorer
from schemas.redis_keys import state_key
from schemas.shards import shard_of
from schemas.states import State
from schemas.topics import ERASURES
from tests.fold_harness import FoldWriter, Group, Running, assert_exact, states_in_features, states_in_redis, wait_for
from tests.worker_harness import DEADLINE_S, Reader, Worker, events, until, worker
from worker.cli.app import main
from worker.config import Config
from worker.demo.embedded import embedded_config
from worker.errors import KafkaError, TopicError
from worker.kafka.admin import create_topics
from worker.privacy.erasure_feed import POLL_EVERY_S, ErasureFeed

SPACE = NullScorer.space
SCORES = ("scores.ctr", "scores.sentiment", "scores.intent", "opinions")
States = dict[tuple[str, str], State]


@pytest.fixture
def config(embedded_broker: str, embedded_redis: str) -> Config:
    kafka = {"options": {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}}
    profiles = {"publish_interval_ms": 200, "redis_retry_ms": 100}
    return embedded_config(embedded_broker, embedded_redis, model={"artifact": "null"}, kafka=kafka, profiles=profiles)


@pytest.fixture
def group(config: Config) -> Iterator[Group]:
    create_topics(config.kafka)
    group = Group(config)
    yield group
    group.close()


def command(config: Config, *arguments: str, code: int = 0) -> Any:
    sections = {"kafka": config.kafka, "redis": config.redis}
    settings = [
        f"{section}.{key}={json.dumps(value)}"
        for section, keys in sections.items()
        for key, value in msgspec.to_builtins(keys).items()
    ]
    options = [part for setting in [*settings, "model.artifact=null"] for part in ("--set", setting)]
    result = CliRunner().invoke(main, [*arguments, *options, "--json"])
    assert result.exit_code == code, result.output + repr(result.exception)
    return json.loads(result.stdout.splitlines()[-1])  # roles on threads log to the same place


class Shop:
    """What two people did, written whole as often as wanted."""

    def __init__(self, config: Config) -> None:
        self.kafka = config.kafka
        self.producer = Producer({"bootstrap.servers": config.kafka.bootstrap})
        clicks = events(40, item_id="i", title="red guitar", action="click")
        reviews = events(10, start=100, text="very good", item_id="i", stars=5)
        messages = events(10, start=200, text="where is my order")
        self.rows: list[tuple[str, bytes, bytes]] = []
        for topic, found in (("events.click", clicks), ("events.review", reviews), ("events.service", messages)):
            for n, event in enumerate(found):
                user = ("anna", "bert")[n % 2]
                self.rows.append((topic, user.encode(), json.dumps({**event, "user_id": user}).encode()))
        now = int(time.time() * 1000)
        # Broken ones: told by the key, by the bytes, by neither.
        self.rows += [
            ("events.review", b"anna", b'{"text": 3}'),
            ("events.service", b"?", b'{"user_id": "anna", "event_time_ms": %d, "text":' % now),
            ("events.service", b"?", b'{"user_id": "\\u0061nna", "event_time_ms": %d}' % now),
            ("events.service", b"bert", b'{"user_id": "bert", "event_time_ms": %d}' % now),
        ]

    def write(self) -> None:
        for topic, key, value in self.rows:
            self.producer.produce(self.kafka.topic(topic), value, key)
        assert self.producer.flush(DEADLINE_S) == 0

    def send(self, topic: str, **event: Any) -> None:
        self.producer.produce(self.kafka.topic(topic), json.dumps(event).encode(), event["user_id"])
        assert self.producer.flush(DEADLINE_S) == 0


def read_by(running: Worker) -> float:
    return sum(running.value("events_total", topic=f"events.{name}") for name in ("click", "review", "service"))


def scores_of(reader: Reader) -> dict[str, int]:
    counts = {"anna": 0, "bert": 0}
    for message in reader.read():
        counts[json.loads(message.value())["user_id"]] += 1
    return counts


def clicked(config: Config) -> dict[str, int]:
    """Clicks in the published states of people (the longest scale hardly decays within a test)."""
    states = states_in_features(config)
    return {key: round(float(state.counts[-1][1])) for (kind, key), state in states.items() if kind == "user"}


def letters_of(config: Config) -> list[str]:
    return [each["id"] for each in command(config, "dead", "list")["letters"]]


def test_a_person_is_forgotten_and_stays_forgotten(config: Config, group: Group) -> None:
    shop = Shop(config)
    scores = Reader(config.kafka, *SCORES)
    with worker(config) as scoring, Running(config) as profiles:
        shop.write()
        wait_for(lambda: scores_of(scores) == {"anna": 35, "bert": 35}, "scores", profiles.check)
        wait_for(lambda: clicked(config) == {"anna": 20, "bert": 20}, "states", profiles.check)
        until(lambda: len(letters_of(config)) == 4, "letters")
        before = states_in_redis(config, config.redis.url)
        assert {("user", "anna"), ("user", "bert")} <= set(before)
        with redis.Redis.from_url(config.redis.url) as client:
            other_space = state_key("old-space", "user", shard_of("anna", config.kafka.fold_shards), "anna")
            client.set(other_space, b"a state of a model long gone")

            receipt = command(config, "erase", "anna", "--yes")
            assert receipt["done"] is True
            assert (receipt["redis"], receipt["newer_states"], receipt["states_deleted"]) == ("deleted", 0, 1)
            assert (receipt["letters_deleted"], receipt["letters_unread"]) == (3, 0)
            assert client.get(other_space) is None
        told = {each["topic"]: each for each in receipt["topics"]}
        assert told[config.kafka.topic("features.user")]["what"] == "deleted"
        assert told[config.kafka.topic("events.click")]["what"] == "expires"
        assert told[config.kafka.topic("events.click")]["gone_by_ms"] > (time.time() + 7 * 86400) * 1000
        assert told[config.kafka.topic(ERASURES)]["what"] == "kept"
        assert ("user", "anna") not in states_in_redis(config, config.redis.url)
        assert ("user", "anna") not in states_in_features(config)
        assert len(letters_of(config)) == 1

        # A worker that was running all the time learns of it.
        until(lambda: _dropped_again(shop, scoring), "the running worker to drop what is old")
    before = states_in_redis(config, config.redis.url)
    assert ("user", "anna") not in before

    # Everything comes again, to roles that start anew: what they know they have read first.
    counted = scores_of(scores)
    with worker(config) as scoring, Running(config) as profiles:
        shop.write()
        until(lambda: read_by(scoring) >= len(shop.rows), "the replay to be read")
        until(lambda: scores_of(scores)["bert"] == counted["bert"] + 35, "Bert's scores")
        wait_for(lambda: clicked(config) == {"bert": 40}, "Bert's folds", profiles.check)
        assert scoring.value("forgotten_total") == 32
        assert scores_of(scores)["anna"] == counted["anna"]
        # Bert's, twice; and what tells no time of its own was written just now, so it is new.
        assert len(letters_of(config)) == 3
        after = states_in_redis(config, config.redis.url)
        assert set(after) == set(before)
        assert after["user", "bert"].counts[-1][1] > before["user", "bert"].counts[-1][1]

        # What she does from now on counts.
        shop.send("events.click", event_id="back", event_time_ms=_now(), user_id="anna", item_id="j", action="click")
        until(lambda: scores_of(scores)["anna"] == counted["anna"] + 1, "her new score")
        wait_for(lambda: ("user", "anna") in states_in_features(config), "her new state", profiles.check)
        fresh = states_in_redis(config, config.redis.url)["user", "anna"]
        assert fresh.counts[-1].tolist() == [1.0, 1.0, 0.0]
        with redis.Redis.from_url(config.redis.url) as client:
            client.flushall()
    with Running(config) as profiles:
        wait_for(lambda: set(_users(config)) == {"anna", "bert"}, "the rebuild", profiles.check)
        assert states_in_redis(config, config.redis.url)["user", "anna"].counts[-1].tolist() == [1.0, 1.0, 0.0]

        # Asked once more for the receipt, the first cut-off stands; only anew is it now.
        again = command(config, "erase", "anna", "--yes")
        assert (again["done"], again["newer_states"]) == (True, 1)
        assert (again["cutoff_ms"], again["erasure_offset"]) == (receipt["cutoff_ms"], receipt["erasure_offset"])
        assert receipt["standing_since_ms"] is None
        assert again["standing_since_ms"] >= receipt["cutoff_ms"]
        assert set(_users(config)) == {"anna", "bert"}
        anew = command(config, "erase", "anna", "--yes", "--anew")
        assert (anew["done"], anew["newer_states"], anew["standing_since_ms"]) == (True, 0, None)
        assert anew["cutoff_ms"] > receipt["cutoff_ms"]
        assert _users(config) == ["bert"]


def _now() -> int:
    return int(time.time() * 1000)


def _users(config: Config) -> list[str]:
    return [key for kind, key in states_in_redis(config, config.redis.url) if kind == "user"]


def _dropped_again(shop: Shop, scoring: Worker) -> bool:
    before = scoring.value("forgotten_total")
    seen = read_by(scoring)
    shop.send("events.service", event_id="old", event_time_ms=1, user_id="anna", text="hello")
    until(lambda: read_by(scoring) > seen, "it to be read")
    return scoring.value("forgotten_total") > before


def test_without_profiles_the_receipt_says_pending_and_it_is_done_when_profiles_comes(
    config: Config, group: Group
) -> None:
    writer = FoldWriter(config, keys=20)
    writer.write(writer.events(300))
    with Running(config) as profiles:
        wait_for(group.published, "folds published", profiles.check)
    user = next(key for kind, key in writer.folds if kind == "user")
    receipt = command(config, "erase", user, "--yes", "--wait", "0.5", code=1)
    assert receipt["done"] is False
    assert "pending" in receipt["redis"]
    assert "profiles did not carry it out in time" in receipt["notes"][0]
    assert ("user", user) in states_in_redis(config, config.redis.url)

    with redis.Redis.from_url(config.redis.url) as client:
        client.flushall()  # rebuilt from features that hold the person still
    with Running(config) as profiles:
        receipt = command(config, "erase", user, "--yes")
        assert receipt["done"] is True
        writer.write(writer.events(100))
        wait_for(group.published, "later folds published", profiles.check)
    # The folds of this harness are of years ago: all of that person's are from before the cut-off.
    del writer.folds["user", user]
    assert_exact(states_in_redis(config, config.redis.url), writer)
    assert_exact(states_in_features(config), writer)


def test_an_erasure_is_carried_out_once_and_published_after_a_crash_in_between(config: Config, group: Group) -> None:
    writer = FoldWriter(config, keys=20)
    writer.write(writer.events(200))
    with Running(config) as profiles:
        wait_for(group.published, "folds published", profiles.check)
    user = next(key for kind, key in writer.folds if kind == "user")
    command(config, "erase", user, "--yes", "--wait", "0", code=1)
    # Deleted from Redis under the fence, then killed before it could publish.
    from prometheus_client import CollectorRegistry

    from worker.metrics import ProfilesMetrics
    from worker.profiles import role

    killed = role.Profiles(config, SPACE, ProfilesMetrics(CollectorRegistry()))
    killed._publish = lambda *_: None  # type: ignore[method-assign]
    until(lambda: killed.step() or ("user", user) not in states_in_redis(config, config.redis.url), "the deletion")
    killed._stream.close()
    assert ("user", user) in states_in_features(config)
    with Running(config) as profiles:
        wait_for(lambda: ("user", user) not in states_in_features(config), "the deletion's publication", profiles.check)


def test_erasures_are_loaded_before_anything_else_and_what_is_none_stops_the_role(config: Config) -> None:
    with pytest.raises(TopicError, match=r"erasures.*millrace topics create"):
        ErasureFeed(config.kafka, "worker")
    create_topics(config.kafka)
    producer = Producer({"bootstrap.servers": config.kafka.bootstrap})
    topic = config.kafka.topic(ERASURES)
    for n in range(3000):
        producer.produce(topic, b'{"user_id": "u%d", "cutoff_ms": %d}' % (n, n), b"u%d" % n, 0)
    producer.produce(topic, None, b"u7", 0)
    producer.produce(topic, b'{"user_id": "u8", "cutoff_ms": 1}', b"u8", 0)
    producer.flush(20)
    now = [0.0]
    feed = ErasureFeed(config.kafka, "worker", lambda: now[0])
    assert len(feed.known) == 2999
    assert not feed.known.cover("u7", 0)
    assert feed.known.cover("u8", 8), "an earlier cut-off does not take the later one back"
    assert not feed.poll()
    producer.produce(topic, b'{"user_id": "late", "cutoff_ms": 5}', b"late", 0)
    producer.flush(20)
    feed.catch_up(3002)
    assert feed.known.cover("late", 5)
    assert not feed.poll(), "not so soon"
    now[0] += POLL_EVERY_S
    assert feed.poll(), "what catching up has read is news to the others"
    now[0] += POLL_EVERY_S
    assert not feed.poll()
    feed.close()
    producer.produce(topic, b"who wrote this", b"x", 0)
    producer.flush(20)
    with pytest.raises(KafkaError, match=r"erasures.* offset 3003: erasure"):
        ErasureFeed(config.kafka, "worker")
    producer.produce(topic, None, b"x", 0)
    producer.flush(20)
    ErasureFeed(config.kafka, "worker").close()


@pytest.mark.parametrize("user", ["", "x" * 257, "\x00fence"])
def test_an_id_that_nobody_can_have_is_refused(config: Config, user: str) -> None:
    create_topics(config.kafka)
    result = CliRunner().invoke(main, ["erase", user, "--yes", "--set", "model.artifact=null"])
    assert result.exit_code == 6
    assert "user id" in result.stderr


def test_one_is_asked_first(config: Config) -> None:
    result = CliRunner().invoke(main, ["erase", "anna", "--set", "model.artifact=null"], input="n\n")
    assert result.exit_code == 1
    assert "cannot be undone" in result.output
