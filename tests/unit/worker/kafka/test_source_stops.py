"""What the source says where it must stop: the command that lets it go on, whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError as ClientError

from worker.config import KafkaConfig
from worker.errors import OffsetLostError, TopicError
from worker.kafka.source import KafkaSource

TOOL = "kafka-consumer-groups.sh --bootstrap-server 127.0.0.1:9 --group shop.worker --reset-offsets"


@pytest.fixture
def source() -> Iterator[KafkaSource]:
    """A member of a group whose broker is away."""
    kafka = KafkaConfig(bootstrap="127.0.0.1:9")
    with closing(KafkaSource(kafka, {"events.click": "new", "events.review": "same"}, "shop.worker")) as source:
        yield source


def test_a_lost_offset_names_partition_and_command(source: KafkaSource) -> None:
    gone = ClientError(ClientError._AUTO_OFFSET_RESET, "offset out of range")
    message = SimpleNamespace(error=lambda: gone, topic=lambda: "events.click", partition=lambda: 3)
    with pytest.raises(OffsetLostError) as caught:
        source._failed(message)
    assert "events.click/3" in str(caught.value)
    assert f"{TOOL} --to-earliest --topic events.click:3 --execute" in str(caught.value)


def test_a_topic_made_again_names_the_command_and_the_price_of_another_group(source: KafkaSource) -> None:
    source._check_made_again("events.click=new events.review=same")
    source._check_made_again("")
    with pytest.raises(TopicError, match=r"events\.click was deleted") as caught:
        source._check_made_again("events.click=old events.review=same")
    assert f"{TOOL} --to-current --all-topics --execute" in str(caught.value)
    assert "begins anew with all that every input retains" in str(caught.value)
