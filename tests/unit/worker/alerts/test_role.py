"""The alerts role around its watch: what ends it, and that it ends in order."""

from __future__ import annotations

import asyncio
from typing import Any

import confluent_kafka
import pytest
from aiokafka.errors import TopicAuthorizationFailedError

from worker.alerts import role as role_module
from worker.config import Config
from worker.errors import KafkaError, KafkaRefusedError, TopicError
from worker.kafka.clients import translate

CONFIG = Config()


class App:
    """Counts how often it is stopped; stopping raises ``error``."""

    crashed = False

    def __init__(self, error: Exception | None = None) -> None:
        self.stopped, self.error = 0, error

    async def stop(self) -> None:
        self.stopped += 1
        if self.error is not None:
            raise self.error


class Watch:
    """Whose last write and commit raises ``error``."""

    failure: BaseException | None = None
    kafka_answers = True
    topic_id = "first"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def write_and_commit(self, *, force: bool) -> None:
        if self.error is not None:
            raise self.error


def shut(watch: Any, app: App) -> None:
    async def go() -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        await role_module._shut(watch, app, done, done)

    asyncio.run(go())


@pytest.mark.parametrize("refused_at", ["commit", "stop"])
def test_a_refusal_at_the_end_stops_the_app_and_is_told_as_ours(refused_at: str) -> None:
    error = TopicAuthorizationFailedError("opinions")
    watch, app = Watch(error if refused_at == "commit" else None), App(error if refused_at == "stop" else None)
    shut(watch, app)
    assert app.stopped == 1
    assert watch.failure is error
    assert isinstance(role_module._ours(watch.failure), KafkaError)


def test_an_end_without_trouble_leaves_no_failure() -> None:
    watch, app = Watch(), App()
    shut(watch, app)
    assert (app.stopped, watch.failure) == (1, None)


def refused(code: int) -> KafkaError:
    """As `worker.kafka.admin` raises what librdkafka says."""
    error = confluent_kafka.KafkaException(confluent_kafka.KafkaError(code))
    ours = translate(error, doing="looking")
    ours.__cause__ = error
    return ours


def checked(monkeypatch: pytest.MonkeyPatch, *looks: KafkaError | tuple[int, str]) -> Watch:
    """The watch after these looks at the topic, each its partitions and id or an error."""
    left = list(looks)
    watch = Watch()

    def look(_kafka: object, names: list[str]) -> dict[str, Any]:
        if not left:
            raise EOFError
        if isinstance(left[0], KafkaError):
            raise left.pop(0)
        return dict.fromkeys(names, left[0][0])

    def ids(_kafka: object, names: list[str]) -> dict[str, Any]:
        return dict.fromkeys(names, left.pop(0)[1])  # type: ignore[index]

    monkeypatch.setattr(role_module, "PARTITIONS_INTERVAL_S", 0.0)
    monkeypatch.setattr(role_module, "partition_counts", look)
    monkeypatch.setattr(role_module, "topic_ids", ids)
    try:
        asyncio.run(role_module._refuse_another_topic(CONFIG, 12, watch))  # type: ignore[arg-type]
    except EOFError:
        return watch
    raise AssertionError


code = confluent_kafka.KafkaError


@pytest.mark.parametrize(
    ("look", "raises"),
    [
        (TopicError("topics missing: opinions"), TopicError),
        (refused(code.UNKNOWN_TOPIC_OR_PART), TopicError),
        (refused(code.TOPIC_AUTHORIZATION_FAILED), KafkaRefusedError),
        ((13, "first"), TopicError),
        ((12, "second"), TopicError),
    ],
)
def test_a_topic_that_is_gone_or_another_or_forbidden_ends_the_role(
    monkeypatch: pytest.MonkeyPatch, look: Any, raises: type[KafkaError]
) -> None:
    with pytest.raises(raises):
        checked(monkeypatch, (12, "first"), look, (12, "first"))


@pytest.mark.parametrize("away", [code._TRANSPORT, code._TIMED_OUT, code._SSL, code._AUTHENTICATION])
def test_a_broker_that_is_away_or_breaks_the_handshake_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, away: int
) -> None:
    assert not checked(monkeypatch, (12, "first"), refused(away)).kafka_answers
    assert checked(monkeypatch, refused(away), (12, "first")).kafka_answers
