"""The notify role on the broker in the process and real HTTP servers: told once, tried again, given up, kept quiet."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
import structlog
from confluent_kafka import Producer
from prometheus_client import CollectorRegistry

from schemas.dead import HEADER_DETAIL, HEADER_REASON, HEADER_SINK
from schemas.scores import Alert
from schemas.topics import ALERTS_CONTROL, ALERTS_OPINION, EVENTS_DEAD
from tests import roles
from tests.alerts_made import made
from tests.embedded.test_dead import answer
from tests.embedded.test_operations import Site
from tests.opinions import WAIT_S, wait_until
from worker.config import Config, KafkaConfig, NotifyConfig, ObserveConfig, WebhookConfig
from worker.demo.embedded import EmbeddedBroker
from worker.errors import ConfigError, TopicError
from worker.kafka.admin import create_topics
from worker.kafka.readback import Readback
from worker.kafka.source import KafkaSource
from worker.metrics import NotifyMetrics
from worker.notify import role
from worker.notify.role import DRAIN_S, Notifier, run
from worker.tools.silencing import ack, mute, silences, unmute
from worker.tools.status import status


class Receiver:
    """A server that keeps what it is sent, and answers what ``answer`` says of the n-th request."""

    def __init__(self, answer: Callable[[int], int] = lambda _: 200) -> None:
        self.got: list[dict[str, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = answer(len(receiver.got))
                receiver.got.append({"id": self.headers["webhook-id"], "status": status, **json.loads(body)})
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    @property
    def taken(self) -> list[str]:
        """Subject and status of what was answered with 200, in order."""
        alerts = [each["data"]["alert"] for each in self.got if each["status"] == 200]
        return [f"{alert['subject']} {alert['status']}" for alert in alerts]

    def __enter__(self) -> Receiver:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


Role = partial(roles.Role, run)
running = partial(roles.running, run)


@pytest.fixture
def kafka(embedded_broker: str) -> KafkaConfig:
    kafka = KafkaConfig(bootstrap=embedded_broker, embedded=True)
    create_topics(kafka, contracts=[ALERTS_OPINION, ALERTS_CONTROL, EVENTS_DEAD])
    return kafka


def config_of(kafka: KafkaConfig, *urls: str, **notify: Any) -> Config:
    fields = {"retry_min_ms": 20, "retry_max_ms": 60, **notify}
    sinks = {f"sink{number}": WebhookConfig(url=url, max_per_minute=600) for number, url in enumerate(urls)}
    return Config(kafka=kafka, notify=NotifyConfig(sinks=sinks, **fields), observe=ObserveConfig(log_level="error"))


def publish(kafka: KafkaConfig, *alerts: Alert | bytes) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
    for alert in alerts:
        value = alert if isinstance(alert, bytes) else msgspec.json.encode(alert)
        key = b"k" if isinstance(alert, bytes) else alert.subject.encode()
        producer.produce(kafka.topic(ALERTS_OPINION), value, key)
    assert producer.flush(WAIT_S) == 0


def finished(config: Config) -> bool:
    """Whether the group has committed all there is."""
    role = next(each for each in status(config).roles if each.role == "notify")
    return role.lag == 0 and any(part.committed for part in role.partitions)


def letters(kafka: KafkaConfig) -> list[tuple[str, str, str]]:
    """Sink, reason and detail of the dead letters."""
    with closing(Readback(kafka, "test")) as reader:
        found = [dict(message.headers()) for message in reader.read(reader.places(kafka.topic(EVENTS_DEAD)))]
    return sorted(
        (each.get(HEADER_SINK, b"").decode(), each[HEADER_REASON].decode(), each[HEADER_DETAIL].decode())
        for each in found
    )


def test_the_life_of_an_alert_is_told_in_order_and_once_across_a_restart(kafka: KafkaConfig) -> None:
    life = [made("item:lamp", status, minute=n) for n, status in enumerate(["opened", "worsening", "improving"])]
    with Receiver() as receiver:
        config = config_of(kafka, receiver.url)
        publish(kafka, *life, life[-1])
        with running(config):
            wait_until(lambda: finished(config), "all told")
        # The alerts role died between publishing and remembering: what it wrote last comes again.
        publish(kafka, life[-1], made("item:lamp", "resolved", minute=7))
        with running(config):
            wait_until(lambda: finished(config), "the end told")
        assert receiver.taken == [f"item:lamp {each}" for each in ("opened", "worsening", "improving", "resolved")]
    assert letters(kafka) == []


def test_a_sink_that_fails_for_a_while_gets_it_later_and_does_not_hold_up_another(kafka: KafkaConfig) -> None:
    with Receiver(lambda number: 500 if number < 3 else 200) as shaky, Receiver() as steady:
        config = config_of(kafka, shaky.url, steady.url)
        with running(config):
            publish(kafka, made("item:a"), made("item:b"))
            wait_until(lambda: finished(config), "all told")
        assert sorted(shaky.taken) == sorted(steady.taken) == ["item:a opened", "item:b opened"]
        assert [each["status"] for each in shaky.got] == [500, 500, 500, 200, 200]
        assert len({each["id"] for each in shaky.got[:4]}) == 1, "tried again under the same id"


def test_what_no_attempt_delivers_becomes_a_dead_letter_and_offsets_move_on(kafka: KafkaConfig) -> None:
    with Receiver(lambda _: 500) as broken, Receiver(lambda _: 404) as gone:
        config = config_of(kafka, broken.url, gone.url, "http://127.0.0.1:9/", give_up_minutes=0.005)
        publish(kafka, made("item:a"), b"not an alert")
        with running(config):
            wait_until(lambda: finished(config), "given up")
    (nothing, first, second, third) = letters(kafka)
    assert nothing[:2] == ("", "wrong_type")
    assert (first[:2], first[2][:20]) == (("sink0", "undeliverable"), "HTTP 500; given up a")
    assert second == ("sink1", "undeliverable", "HTTP 404")
    assert third[2].startswith("connection refused; given up after")


def test_letters_of_two_sinks_are_told_apart_and_sent_again_each_to_its_own_and_once(kafka: KafkaConfig) -> None:
    options = Site(kafka, "redis://127.0.0.1:9/0").options
    answers = {"first": 404, "second": 404}
    with (
        Receiver(lambda _: answers["first"]) as first,
        Receiver(lambda _: answers["second"]) as second,
        Receiver() as steady,
    ):
        urls = (first.url, second.url, steady.url)
        publish(kafka, made("item:a"))
        with running(config := config_of(kafka, *urls)):
            wait_until(lambda: finished(config), "given up")
        listed = answer(options, "dead", "list", "--stage", "notify")["letters"]
        of_first, of_second = sorted(each["id"] for each in listed)
        assert (of_first[-6:], of_second[-6:]) == ("#sink0", "#sink1")
        assert answer(options, "dead", "show", of_second)["letter"]["detail"] == "HTTP 404"

        answers["first"] = 200
        assert answer(options, "dead", "replay", of_first)["replayed"] == 1
        assert answer(options, "dead", "replay", of_first)["ended"] == {of_first: "replayed"}
        assert [each["id"] for each in answer(options, "dead", "list")["letters"]] == [of_second]
        assert answer(options, "dead", "replay", "--stage", "notify", "--yes")["replayed"] == 1
        # By now every alert is too old to be told, but for what a person sends again.
        with running(config := config_of(kafka, *urls, max_age_minutes=1e-6)):
            wait_until(lambda: finished(config), "told again, buried again")
        (relapsed,) = answer(options, "dead", "list")["letters"]
        assert (relapsed["id"][-6:], relapsed["replays"]) == ("#sink1", 1)
        # A sink that was left out of the configuration has not taken it either.
        answer(options, "dead", "replay", relapsed["id"])
        with running(config := config_of(kafka, first.url)):
            wait_until(lambda: finished(config), "buried again")
        (kept,) = answer(options, "dead", "list")["letters"]
        assert (kept["id"][-6:], kept["replays"], kept["detail"][:12]) == ("#sink1", 2, "notify.sinks")
        assert len({each["id"] for each in first.got + second.got}) == 1
        assert (len(first.got), len(second.got), len(steady.got)) == (2, 2, 1)


def test_what_was_not_taken_before_the_end_is_told_by_the_next_process(kafka: KafkaConfig) -> None:
    answers = {"now": 500}
    with Receiver(lambda _: answers["now"]) as receiver:
        config = config_of(kafka, receiver.url)
        publish(kafka, made("item:a"))
        with running(config):
            wait_until(lambda: bool(receiver.got), "tried")
        assert receiver.taken == []
        answers["now"] = 200
        with running(config):
            wait_until(lambda: finished(config), "told")
        assert receiver.taken == ["item:a opened"]


def test_mutes_and_acknowledgements_hold_at_once_and_after_a_restart(kafka: KafkaConfig) -> None:
    with Receiver() as receiver:
        config = config_of(kafka, receiver.url)
        mute(kafka, "brand:*", 3600, by="li", note="sale")
        with running(config):
            publish(kafka, made("brand:lux"), made("item:a"))
            wait_until(lambda: receiver.taken == ["item:a opened"], "the other told")
            ack(kafka, made("item:a").alert_id)
            wait_until(lambda: len(silences(kafka).acks) == 1, "acknowledged")
        with running(config):
            publish(kafka, made("item:a", "worsening", minute=1), made("brand:lux", "worsening", minute=1))
            publish(kafka, made("item:a", "resolved", minute=2))
            wait_until(lambda: len(receiver.taken) == 2, "its end told")
            wait_until(lambda: finished(config), "all dealt with")
        assert receiver.taken == ["item:a opened", "item:a resolved"]
        assert [(each.pattern, each.by, each.note) for each in silences(kafka).mutes] == [("brand:*", "li", "sale")]
        unmute(kafka, "brand:*")
        assert silences(kafka).mutes == []
        with running(config):
            publish(kafka, made("brand:lux", "resolved", minute=3))
            wait_until(lambda: receiver.taken[-1] == "brand:lux resolved", "told again")


def test_it_is_not_ready_while_kafka_takes_no_offsets(kafka: KafkaConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, take = [False], KafkaSource.commit
    monkeypatch.setattr(KafkaSource, "commit", lambda *args: take(*args) if taken[0] else None)
    monkeypatch.setattr(role, "STALL_S", 0.2)
    monkeypatch.setattr(role, "COMMIT_INTERVAL_S", 0.0)
    sink = WebhookConfig(url="http://127.0.0.1:9/", subjects=("brand:*",))
    config = Config(kafka=kafka, notify=NotifyConfig(sinks={"ops": sink}))
    publish(kafka, made("item:nobody-wants-it"))

    async def go() -> None:
        notifier = Notifier(config, NotifyMetrics(CollectorRegistry()))

        def ready_after_a_step() -> bool:
            notifier.step()
            return notifier.health()[0]

        try:
            assert ready_after_a_step(), "nothing to commit yet"
            wait_until(lambda: not ready_after_a_step(), "offsets not taken for too long")
            taken[0], notifier._committing = True, False
            wait_until(ready_after_a_step, "taken")
        finally:
            await notifier.close()

    asyncio.run(go())


def test_what_is_muted_while_it_waits_is_not_told_later(kafka: KafkaConfig) -> None:
    answers = {"now": 500}
    with Receiver(lambda _: answers["now"]) as receiver:
        config = config_of(kafka, receiver.url)
        with running(config):
            publish(kafka, made("item:a"))
            wait_until(lambda: bool(receiver.got), "tried")
            mute(kafka, "item:a", 3600)
            wait_until(lambda: finished(config), "withdrawn")
            answers["now"] = 200
            publish(kafka, made("item:b"))
            wait_until(lambda: bool(receiver.taken), "the other told")
        assert receiver.taken == ["item:b opened"]
    assert letters(kafka) == []


def test_a_sink_that_a_rule_names_and_nobody_has_is_told_once(kafka: KafkaConfig) -> None:
    with Receiver() as receiver, structlog.testing.capture_logs() as logs:
        config = config_of(kafka, receiver.url)
        publish(kafka, *(made("item:a", minute=n, sinks=["opps"]) for n in range(3)), made("item:b", sinks=["sink0"]))
        with running(config):
            wait_until(lambda: finished(config), "all dealt with")
    assert receiver.taken == ["item:b opened"]
    warnings = [(each["sink"], each["rule"]) for each in logs if each["log_level"] == "warning" and "rule" in each]
    assert warnings == [("opps", "negative_share")]


def test_reading_waits_for_a_sink_that_is_behind(kafka: KafkaConfig) -> None:
    released = threading.Event()
    with Receiver(lambda number: 200 if released.is_set() or number == 0 else 503) as receiver:
        config = config_of(kafka, receiver.url, queue_max=3)
        publish(kafka, *[made("item:a", minute=n) for n in range(400)])
        with running(config):
            wait_until(lambda: len(receiver.got) > 5, "it fails")
            lag = next(each for each in status(config).roles if each.role == "notify").lag
            assert lag >= 399
            released.set()
            wait_until(lambda: len(receiver.taken) >= 300, "most told")
        assert receiver.taken[:300] == ["item:a opened"] * 300


def test_it_refuses_to_start_without_sinks_or_topics(kafka: KafkaConfig, embedded_broker: str) -> None:
    with pytest.raises(ConfigError, match=r"notify\.sinks"), running(Config(kafka=kafka)):
        pass
    other = KafkaConfig(bootstrap=embedded_broker, embedded=True, topics={ALERTS_CONTROL: "not.made"})
    with pytest.raises(TopicError, match=r"not\.made"), running(config_of(other, "http://127.0.0.1:9/")):
        pass


def test_it_tells_on_and_stops_in_time_when_the_broker_is_gone() -> None:
    answers = {"now": 500}
    with Receiver(lambda _: answers["now"]) as receiver:
        with EmbeddedBroker() as broker:
            kafka = KafkaConfig(bootstrap=broker.bootstrap, embedded=True)
            create_topics(kafka, contracts=[ALERTS_OPINION, ALERTS_CONTROL, EVENTS_DEAD])
            publish(kafka, made("item:a"))
            role = Role(config_of(kafka, receiver.url))
            wait_until(lambda: bool(receiver.got), "tried")
        answers["now"] = 200
        wait_until(lambda: receiver.taken == ["item:a opened"], "told without a broker")
        started = time.monotonic()
        role.stop()
        assert time.monotonic() - started < 3 * DRAIN_S
