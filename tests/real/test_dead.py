"""Dead letters on Apache Kafka: the embedded tests on a real broker, and a replay that is killed in the middle."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import msgspec
import pytest

from tests.embedded.test_dead import (  # noqa: F401 tests and fixtures that pytest finds here by name
    answer,
    options,
    record,
    run,
    test_a_foreign_record_among_the_letters_is_nobodys,
    test_a_replay_gives_back_what_came_marks_it_and_happens_once,
    test_letters_are_listed_by_filters_and_shown_without_their_contents,
    test_many_letters_are_a_dry_run_until_one_says_yes,
    test_what_cannot_be_replayed_is_said,
    test_what_is_dropped_is_gone_for_good_and_only_after_a_yes,
    topic,
    write_letters,
)
from tests.embedded.test_operations import Site
from tests.real.proof import read_all
from worker.config import KafkaConfig
from worker.errors import KafkaError
from worker.tools.dead_letters import Filter
from worker.tools.dead_replay import DeadReplay

pytestmark = pytest.mark.real
LETTERS = 3000


@pytest.fixture
def site(kafka_config: dict[str, Any], redis_url: str) -> Site:
    return Site(msgspec.convert(kafka_config, KafkaConfig), redis_url)


def test_a_killed_replay_loses_nothing_and_repeats_nothing(
    site: Site,
    options: list[str],  # noqa: F811
    topic: str,  # noqa: F811
) -> None:
    write_letters(site, *(record(topic, n, b"bad %d" % n) for n in range(LETTERS)))
    # Small transactions, and a stop before each commit, so that the kill falls between produce and commit.
    code = (
        "import sys; from worker.tools import dead_replay; dead_replay.BATCH_LETTERS = 50\n"
        "from confluent_kafka import Producer\n"
        "class Slow(Producer):\n"
        "    def commit_transaction(self, *a):\n"
        "        print('committing', flush=True)\n"
        "        sys.stdin.readline()\n"
        "        return super().commit_transaction(*a)\n"
        "dead_replay.Producer = Slow\n"
        "from worker.cli.app import main; main(sys.argv[1:])"
    )
    arguments = ["dead", "replay", "--reason", "not_json", "--yes", *options]
    for committed in (0, 3, 7):
        with subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for _ in range(committed):
                assert process.stdout.readline() == "committing\n"
                process.stdin.write("\n")
                process.stdin.flush()
            assert process.stdout.readline() == "committing\n"
            process.kill()
    assert answer(options, "dead", "replay", "--reason", "not_json", "--yes")["replayed"] == LETTERS - 500
    assert answer(options, "dead", "list")["matched"] == 0
    seen = Counter(message.value() for message in read_all(site.kafka.bootstrap, topic))
    assert seen == {b"bad %d" % n: 1 for n in range(LETTERS)}


def test_a_second_replay_takes_over_and_the_first_says_so(
    site: Site,
    options: list[str],  # noqa: F811
    topic: str,  # noqa: F811
) -> None:
    write_letters(site, *(record(topic, n, b"bad %d" % n) for n in range(450)))
    second: list[Any] = []

    def meanwhile(done: int) -> None:
        if not second:
            second.append(DeadReplay(site.kafka).send(Filter(), None, lambda _: None))

    with pytest.raises(KafkaError, match="another replay took over; 200 letters were replayed here"):
        DeadReplay(site.kafka).send(Filter(), None, meanwhile)
    assert second[0].replayed == 250
    seen = Counter(message.value() for message in read_all(site.kafka.bootstrap, topic))
    assert seen == {b"bad %d" % n: 1 for n in range(450)}
