"""The operator's tools against a real Kafka and a real Redis: the tests of the embedded ones, on other servers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.embedded.test_operations import (  # noqa: F401 tests and a fixture that pytest finds here by name
    Site,
    options,
    test_a_paced_replay_takes_its_time,
    test_a_replay_without_topics_says_how_to_make_them,
    test_a_topic_with_the_wrong_shards_is_told,
    test_replayed_rows_can_be_followed_counted_and_are_keyed_by_user,
    test_status_goes_on_without_redis,
    test_status_sets_fences_beside_the_end_of_the_folds,
    test_the_doctor_finds_a_sound_system_well_and_an_evicting_redis_not,
    test_topics_are_made_once_and_described,
)
from worker.config import KafkaConfig

pytestmark = pytest.mark.real


@pytest.fixture
def site(kafka_config: dict[str, Any], redis_url: str) -> Site:
    # One broker keeps one copy.
    return Site(msgspec.convert(kafka_config, KafkaConfig), redis_url, ("doctor", "--replication", "1"))
