"""The main job on real servers: real files in, one score per event out, states exact, through kill -9 too.

Every role is a process of its own, started the way an operator starts it.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from schemas.topics import FOLDS, INPUTS
from tests.real.proof import (
    DEADLINE_S,
    SCORES,
    Role,
    Tally,
    count,
    dump,
    folds_by_key,
    millrace,
    repeats_of,
    scores_by_event,
    state_mismatches,
    wait_until_committed,
    write_config,
)
from worker.config import Config, load_config

pytestmark = pytest.mark.real

# file of shared/data -> topic of the contract
FILES = {
    "clicks_ml1m.valid": "events.click",
    "reviews_zh.valid": "events.review",
    "reviews_en.valid": "events.review",
    "shop_intents_en.valid": "events.service",
}


def timeless() -> tuple[str, str]:
    """Options of a replay: rows without a time, as of the labelled texts, are from now."""
    return "--start-time", str(int(time.time() * 1000))


class Cluster:
    """One run's topics, groups and configuration on the running servers."""

    def __init__(self, config_path: Path, redis_url: str) -> None:
        self.path, self.redis_url = config_path, redis_url
        self.config: Config = load_config(config_path)
        self.bootstrap = self.config.kafka.bootstrap
        self.roles: list[Role] = []
        self.tally = Tally(self.bootstrap, [self.topic(name) for name in SCORES])

    def topic(self, name: str) -> str:
        """The cluster's name of a topic of the contract."""
        return self.config.kafka.topic(name)

    def start(self, name: str, *arguments: str) -> Role:
        """Start a role, or a command that runs beside them."""
        role = Role(name, self.path, *arguments)
        self.roles.append(role)
        return role

    def replay(self, file: Path, topic: str, *more: str) -> None:
        """Replay a file to its end."""
        millrace("replay", str(file), "--topic", topic, "--config", str(self.path), *timeless(), *more)

    def scored(self) -> int:
        """How many committed scores there are, repeats included."""
        return self.tally.read()

    def scores(self) -> dict[str, list[dict[str, Any]]]:
        """Every score of every event, by event id."""
        return scores_by_event(self.bootstrap, [self.topic(name) for name in SCORES])

    def wait_for_scores(self, wanted: int) -> None:
        """Wait until there are so many scores."""
        deadline = time.monotonic() + DEADLINE_S
        while self.scored() < wanted:
            for role in self.roles:
                role.check()
            assert time.monotonic() < deadline, f"{self.scored()} of {wanted} scores\n{self.roles[0].tail()}"
            time.sleep(0.2)

    def settle(self, events: int) -> None:
        """Wait until every event has a score, every offset is committed and every fold is in Redis and published."""
        self.wait_for_scores(events)
        prefix = self.config.kafka.group_prefix
        wait_until_committed(self.bootstrap, f"{prefix}.worker", [self.topic(name) for name in INPUTS], self.roles)
        wait_until_committed(
            self.bootstrap, f"{prefix}.profiles", [self.topic(name) for name in FOLDS.values()], self.roles
        )

    def check_states(self) -> dict[str, Any]:
        """Compare Redis with plain arithmetic over the folds; the figures."""
        report: dict[str, Any] = {}
        for kind, name in FOLDS.items():
            scales = self.config.profiles.scales_s
            keys, wrong, worst = state_mismatches(self.bootstrap, self.redis_url, self.topic(name), kind, scales)
            report[kind] = {"keys": keys, "mismatches": wrong, "largest_difference": worst}
            assert keys > 0
            assert wrong == 0, report
        return report


def cut(source: Path, target: Path, rows: int | None) -> list[dict[str, Any]]:
    """Copy the first rows of a gzipped file (all when None); the rows."""
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        kept = list(islice(lines, rows))
    target.write_text("".join(kept), encoding="utf-8")
    return [json.loads(line) for line in kept]


@pytest.fixture
def cluster(
    request: pytest.FixtureRequest, kafka_config: dict[str, Any], redis_url: str, tmp_path: Path
) -> Iterator[Cluster]:
    """Fresh topics and groups on the running broker, a Redis of our own, and the artifact the test asks for."""
    sections = {"kafka": kafka_config, "redis": {"url": redis_url}, "model": {"artifact": request.param}}
    path = write_config(tmp_path, **sections)
    millrace("topics", "create", "--config", str(path))
    made = Cluster(path, redis_url)
    yield made
    made.tally.close()
    for role in made.roles:
        if role.process.poll() is None:
            role.kill()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("cluster", ["starter"], indirect=True)
def test_real_files_give_one_score_each_and_exact_states(cluster: Cluster, data_dir: Path, tmp_path: Path) -> None:
    """All of the files with MILLRACE_FULL=1, else the first rows of each."""
    # Fewer rows name too few intents: offline chooses among those that the file has, online among all.
    rows = None if os.environ.get("MILLRACE_FULL") else 250
    files = {name: tmp_path / f"{name}.jsonl" for name in FILES}
    labelled = {name: cut(data_dir / f"{name}.jsonl.gz", file, rows) for name, file in files.items()}
    events = sum(len(found) for found in labelled.values())
    worker, profiles = cluster.start("worker"), cluster.start("profiles")
    for name, file in files.items():
        cluster.replay(file, FILES[name])
    cluster.settle(events)
    worker.stop()
    profiles.stop()

    scores = cluster.scores()
    assert repeats_of(scores) == {1: events}
    assert count(cluster.bootstrap, cluster.topic("events.dead")) == 0
    report: dict[str, Any] = {"events": events, "states": cluster.check_states()}
    # Online, a message below the threshold is out of scope: that is ``in_scope_accuracy`` offline.
    for name, task, metric in (
        ("reviews_zh.valid", "sentiment", "accuracy"),
        ("shop_intents_en.valid", "intent.shop", "in_scope_accuracy"),
    ):
        by_line = [scores[f"{name}-{line}"][0] for line in range(1, len(labelled[name]) + 1)]
        online = accuracy(by_line, labelled[name], task)
        line = millrace("evaluate", "--task", task, "--data", str(files[name]), "--json").splitlines()[-1]
        offline = json.loads(line)[metric]
        report[name] = {"online": online, "offline": offline, "metric": metric}
        assert online == pytest.approx(offline, abs=0.002)
    dump(tmp_path / "report.json", report)


def accuracy(scores: list[dict[str, Any]], rows: list[dict[str, Any]], task: str) -> float:
    """Share of scores whose likeliest label among the file's own labels is the row's."""
    right = 0
    for score, row in zip(scores, rows, strict=True):
        if task == "sentiment":
            labels = {"negative": score["p_negative"], "positive": score["p_positive"]}
            right += max(labels, key=labels.__getitem__) == row["sentiment"]
        else:
            right += score["intent"] == row["intent"]
    return right / len(rows)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("cluster", ["null"], indirect=True)
def test_kill_9_of_worker_and_profiles_loses_nothing(cluster: Cluster, data_dir: Path, tmp_path: Path) -> None:
    """Both are killed twice in mid-replay: still one score and one fold each, and states are exact."""
    files = {name: tmp_path / f"{name}.jsonl" for name in FILES}
    events = sum(len(cut(data_dir / f"{name}.jsonl.gz", file, None)) for name, file in files.items())
    worker, profiles = cluster.start("worker"), cluster.start("profiles")
    replays = [
        cluster.start("replay", str(file), "--topic", FILES[name], "--rate", "600", *timeless())
        for name, file in files.items()
    ]
    for share in (0.2, 0.5):
        cluster.wait_for_scores(int(share * events))
        worker.kill()
        cluster.roles.remove(worker)
        worker = cluster.start("worker")
        cluster.wait_for_scores(int((share + 0.15) * events))
        profiles.kill()
        cluster.roles.remove(profiles)
        profiles = cluster.start("profiles")
    for replay in replays:
        replay.wait()
    cluster.settle(events)
    worker.stop()
    profiles.stop()

    scores = cluster.scores()
    assert repeats_of(scores) == {1: events}
    repeats = {kind: folds_by_key(cluster.bootstrap, cluster.topic(name))[1] for kind, name in FOLDS.items()}
    assert not any(repeats.values())
    dump(tmp_path / "report.json", {"events": events, "states": cluster.check_states()})
