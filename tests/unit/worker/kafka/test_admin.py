"""Topics as they are to be made."""

from __future__ import annotations

import pytest

from schemas.topics import INPUTS, TOPICS
from worker.errors import ConfigError
from worker.kafka.admin import contract_topics


def test_partitions_are_of_the_inputs_alone() -> None:
    made = {topic.name: topic.partitions for topic in contract_topics(TOPICS, 24)}
    assert made == {name: 24 if name in INPUTS else topic.partitions for name, topic in TOPICS.items()}
    assert contract_topics(TOPICS) == list(TOPICS.values())


def test_fewer_partitions_than_the_contract_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--partitions 6: .* 12 "):
        contract_topics(TOPICS, 6)
