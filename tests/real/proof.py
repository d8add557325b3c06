"""What the promises are proved with: read everything back from Kafka and Redis, and compare with plain arithmetic.

Nothing here uses the code under test except the byte formats of `schemas`: the states are computed again in
plain numpy from the folds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import redis
import yaml
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from schemas.folds import decode_block
from schemas.redis_keys import state_key
from schemas.states import decode_state
from schemas.topics import FOLDS, INPUTS
from tests.servers import NOT_YET
from worker.config import KafkaConfig

MILLRACE = (sys.executable, "-m", "worker.cli.app")
SCORES = ("scores.ctr", "scores.sentiment", "scores.intent")
DEADLINE_S = 240.0


def write_config(folder: Path, **sections: dict[str, Any]) -> Path:
    """A configuration file of the given sections."""
    path = folder / "millrace.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


def millrace(*arguments: str, timeout_s: float = 300.0) -> str:
    """Run one command to its end; its standard output. Fails with its standard error."""
    done = subprocess.run([*MILLRACE, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"millrace {' '.join(arguments)}: exit {done.returncode}\n{done.stderr[-4000:]}"
    return done.stdout


class Role:
    """A role, or a long command, as a process of its own, whose log is shown when it dies unasked."""

    def __init__(
        self, name: str, config: Path, *arguments: str, env: dict[str, str] | None = None, tree: Path | None = None
    ) -> None:
        """``tree``: the folder of the source to run, where it is not the one under test."""
        self.name, self.log = name, config.parent / f"{name}-{uuid.uuid4().hex[:6]}.log"
        # worker.cli was a module before it was a room.
        program = (sys.executable, "-m", "worker.cli") if tree and (tree / "worker" / "cli.py").exists() else MILLRACE
        command = [*program, name, *arguments, "--config", str(config)]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=tree)

    def kill(self) -> None:
        """kill -9: nothing is flushed, committed or handed over."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> None:
        """SIGTERM and a clean end."""
        self.process.terminate()
        self.wait()

    def wait(self) -> None:
        """Wait for a clean end."""
        code = self.process.wait(300)
        assert code == 0, f"{self.name} ended with {code}:\n{self.tail()}"

    def check(self) -> None:
        """Fail when the role has died, or a bounded command has failed."""
        assert self.process.poll() in (None, 0), f"{self.name} died with {self.process.returncode}:\n{self.tail()}"

    def tail(self) -> str:
        """The end of the role's log."""
        return self.log.read_text(errors="replace")[-4000:]


def consumer(bootstrap: str) -> Consumer:
    """A reader of committed records that belongs to no group; the end of a partition is told as an error."""
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"proof-{uuid.uuid4().hex}",
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )


def ends_of(bootstrap: str, topic: str) -> dict[int, int]:
    """The end of every partition of a topic. A topic just made may have no leader for a moment: asked again."""
    client = AdminClient({"bootstrap.servers": bootstrap})
    deadline = time.monotonic() + 30
    while True:
        try:
            partitions = client.list_topics(topic, timeout=20).topics[topic].partitions
            asked = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in partitions}
            found = client.list_offsets(asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=20)
            return {part.partition: future.result(30).offset for part, future in found.items()}
        except KafkaException as error:
            # Admin results carry no retriable flag of their own.
            if error.args[0].code() not in NOT_YET or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def read_all(bootstrap: str, topic: str) -> Iterator[Message]:
    """Every record of a topic up to its end."""
    return _records(bootstrap, [TopicPartition(topic, partition, 0) for partition in ends_of(bootstrap, topic)])


def _records(bootstrap: str, parts: list[TopicPartition]) -> Generator[Message, None, None]:
    """Every record of some partitions, each from its offset to its end."""
    reader = consumer(bootstrap)
    try:
        reader.assign(parts)
        left = {(part.topic, part.partition) for part in parts}
        deadline = time.monotonic() + 60
        while left:
            assert time.monotonic() < deadline, f"{left} could not be read to the end"
            for message in reader.consume(1000, 0.2):
                if message.error() is None:
                    yield message
                    continue
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                left.discard((message.topic(), message.partition()))
    finally:
        reader.close()


def count(bootstrap: str, topic: str) -> int:
    """How many committed records a topic holds."""
    return sum(1 for _ in read_all(bootstrap, topic))


class Tally:
    """How many committed records some topics hold, asked again and again: it goes on reading where it was."""

    def __init__(self, bootstrap: str, topics: list[str]) -> None:
        self._reader = consumer(bootstrap)
        self._reader.assign([TopicPartition(t, p, 0) for t in topics for p in ends_of(bootstrap, t)])
        self._records = 0

    def read(self) -> int:
        """What is there by now."""
        while messages := self._reader.consume(5000, 0.1):
            self._records += sum(message.error() is None for message in messages)
        return self._records

    def close(self) -> None:
        """Let go of the connection."""
        self._reader.close()


def wait_until_both_committed(kafka: KafkaConfig, **how: Any) -> None:
    """`wait_until_committed` for all that there is for worker and for profiles."""
    for role, names in (("worker", INPUTS), ("profiles", tuple(FOLDS.values()))):
        topics = [kafka.topic(name) for name in names]
        wait_until_committed(kafka.bootstrap, f"{kafka.group_prefix}.{role}", topics, [], **how)


def wait_until_committed(
    bootstrap: str,
    group: str,
    topics: list[str],
    roles: list[Role],
    meanwhile: Callable[[], object] = lambda: None,
    timeout_s: float = DEADLINE_S,
) -> None:
    """Wait until a group has committed every record of the topics. Above the last one there may be transactions' marks,
    which no client commits."""
    deadline = time.monotonic() + timeout_s
    reader = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False})
    try:
        while True:
            known = {(topic, p): end for topic in topics for p, end in ends_of(bootstrap, topic).items()}
            committed = _committed(reader, list(known))
            behind = {part: max(0, offset) for part, offset in committed.items() if offset < known[part]}
            if not _any_record(bootstrap, behind, known):
                return
            for role in roles:
                role.check()
            meanwhile()
            tail = roles[-1].tail() if roles else ""
            assert time.monotonic() < deadline, f"{group} is behind: {behind} of {known}\n{tail}"
            time.sleep(0.5)
    finally:
        reader.close()


def _committed(reader: Consumer, parts: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
    try:
        found = reader.committed([TopicPartition(*part) for part in parts], timeout=20)
    except KafkaException as error:
        if error.args[0].code() not in NOT_YET:
            raise
        return dict.fromkeys(parts, 0)
    return {(part.topic, part.partition): part.offset for part in found}


def _any_record(bootstrap: str, starts: dict[tuple[str, int], int], ends: dict[tuple[str, int], int]) -> bool:
    """Whether there is a committed record at or above these offsets."""
    parts = [TopicPartition(*part, offset) for part, offset in starts.items() if ends[part] > offset]
    if not parts:
        return False
    with closing(_records(bootstrap, parts)) as records:
        return next(records, None) is not None


def scores_by_event(bootstrap: str, topics: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Every score of every event, by event id."""
    found: dict[str, list[dict[str, Any]]] = {}
    for topic in topics:
        for message in read_all(bootstrap, topic):
            score = json.loads(message.value())
            found.setdefault(score["event_id"], []).append(score)
    return found


Row = tuple[int, np.ndarray, np.ndarray, np.ndarray]


def folds_by_key(bootstrap: str, topic: str) -> tuple[dict[tuple[str, int, str], list[Row]], int]:
    """Distinct folds by (space, shard, key), and how many were repeats of a source position.

    A worker that was killed writes some folds again; the source position tells them, nothing else is trusted.
    """
    seen: set[tuple[int, str, int, int]] = set()
    rows: dict[tuple[str, int, str], list[Row]] = {}
    repeats = 0
    for message in read_all(bootstrap, topic):
        block = decode_block(message.value())
        for i, key in enumerate(block.keys):
            topic_id = block.topic_ids[block.topic_index[i]]
            position = (block.shard, topic_id, int(block.partition[i]), int(block.offset[i]))
            if position in seen:
                repeats += 1
                continue
            seen.add(position)
            row = (int(block.time_ms[i]), block.weights[i], block.counts[i], block.vectors[i])
            rows.setdefault((block.space, block.shard, key), []).append(row)
    return rows, repeats


def plain_state(rows: list[Row], scales_s: tuple[float, ...]) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Time, sums, weights and counts of a key from its folds: DESIGN's formulas, nothing clever."""
    latest = max(row[0] for row in rows)
    sums, weights = np.zeros((2, len(scales_s), 64)), np.zeros((2, len(scales_s)))
    counts = np.zeros((len(scales_s), 3))
    for time_ms, weight, amount, vector in rows:
        for s, tau in enumerate(scales_s):
            decay = np.exp(-(latest - time_ms) / 1000.0 / tau)
            sums[:, s] += decay * weight[:, None].astype(float) * vector.astype(float)
            weights[:, s] += decay * weight
            counts[s] += decay * amount
    return latest, sums, weights, counts


def state_mismatches(
    bootstrap: str, redis_url: str, topic: str, kind: str, scales_s: tuple[float, ...], tolerance: float = 1e-5
) -> tuple[int, int, float]:
    """Compare every state in Redis with plain arithmetic over the folds: (keys, mismatches, largest difference).

    The tolerance is relative to the size of the state where that is over one (float32 at rest).
    """
    rows, _ = folds_by_key(bootstrap, topic)
    client = redis.Redis.from_url(redis_url)
    worst, wrong = 0.0, 0
    for (space, shard, key), folds in rows.items():
        data = client.get(state_key(space, kind, shard, key))  # type: ignore[arg-type]
        if data is None:
            wrong += 1
            continue
        state = decode_state(data)  # type: ignore[arg-type]
        latest, sums, weights, counts = plain_state(folds, scales_s)
        difference = max(
            float(np.max(np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted))))
            for found, wanted in ((state.sums, sums), (state.weights, weights), (state.counts, counts))
        )
        worst = max(worst, difference)
        wrong += state.key != key or state.time_ms != latest or difference > tolerance
    client.close()
    return len(rows), wrong, worst


def repeats_of(found: dict[str, list[dict[str, Any]]]) -> Counter[int]:
    """How often events have so many scores."""
    return Counter(len(scores) for scores in found.values())


def dump(path: Path, report: dict[str, Any]) -> None:
    """Keep a report where a person asked for it (``MILLRACE_REPORT``), and print it."""
    line = json.dumps(report, ensure_ascii=False)
    print(line)
    target = os.environ.get("MILLRACE_REPORT")
    if target:
        with Path(target).open("a", encoding="utf-8") as out:
            out.write(line + "\n")
    path.write_text(line, encoding="utf-8")
