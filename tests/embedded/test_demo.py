"""The demo as a newcomer runs it, with the model that needs no torch: exact counts, good endings, clear errors."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from model.null import NullScorer
from schemas.topics import EVENTS_CLICK, EVENTS_REVIEW, EVENTS_SERVICE
from worker.demo.catalogue import Catalogue
from worker.demo.demo import SEED, plan, run_demo
from worker.demo.embedded import embedded_config
from worker.demo.roles import RoleError, Roles
from worker.demo.shop import Shop
from worker.demo.traffic import BROKEN, BROKEN_EVERY
from worker.errors import InputError
from worker.scoring.aspects import load_aspects
from worker.scoring.emit import CATEGORY_CONFIDENCE_MIN

EVENTS = 300
RATE = 100.0
NULL = ["--set", "model.artifact=null"]
ENDS_WITHIN_S = 150
ASPECTS = load_aspects("shipped")


def command(*options):
    return [sys.executable, "-m", "worker.cli.app", "demo", *options]


@pytest.fixture
def start(tmp_path):
    """Starts a demo and waits until it runs; gives it and the lines it has said. Ended whatever happens."""
    started = []

    def begin(*options):
        env = {**os.environ, "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(
            command(*options, *NULL), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
        lines, running = [], threading.Event()

        def read():
            for line in process.stdout:
                lines.append(line)
                if "running" in line:
                    running.set()

        reader = threading.Thread(target=read)
        reader.start()
        started.append((process, reader))
        assert running.wait(ENDS_WITHIN_S), lines
        return process, lines

    yield begin
    for process, reader in started:
        process.terminate()
        process.wait(60)
        reader.join(10)
        process.stdout.close()


def children(pid):
    """Pid to command line of the processes that a process has started."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(each): Path(f"/proc/{each}/cmdline").read_bytes().replace(b"\0", b" ").decode() for each in pids}


def wait_until_gone(pids):
    deadline = time.monotonic() + 20
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def expected():
    """What the shop sends in the test's demo: good and broken ones by topic, and the good events."""
    broken = [BROKEN[n % len(BROKEN) - 1][1] for n in range(1, EVENTS // BROKEN_EVERY + 1)]
    times = plan(EVENTS, RATE, 1_767_225_600_000)  # what happens does not depend on when
    shop = Shop(SEED, Catalogue.load(), times.surge)
    sent = list(islice(shop.events(times.start_ms, times.spacing_ms), EVENTS - len(broken)))
    good = Counter(event.topic for event in sent)
    return good, Counter(broken), sent


def opinions(sent):
    """Item, brand, the category that the review names or the null model is sure of, and what its text is about."""
    scorer = NullScorer()
    confidence = scorer.classify("category", scorer.encode(scorer.prepare([sent.event.text]))).max()
    category = sent.event.category is not None or confidence >= CATEGORY_CONFIDENCE_MIN
    return 2 + category + len(ASPECTS.match(sent.event.text))


def test_a_bounded_demo_scores_every_event_and_says_so_in_its_last_line(tmp_path):
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    ended = subprocess.run(
        command("--events", str(EVENTS), "--rate", str(RATE), "--exit", "--json", *NULL),
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
        check=False,
        env=env,
    )
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    good, broken, sent = expected()
    assert broken.total() == 3
    assert said["events_in"] == dict(good + broken)
    scores = {"scores.ctr": EVENTS_CLICK, "scores.sentiment": EVENTS_REVIEW, "scores.intent": EVENTS_SERVICE}
    assert {topic: said["scores_out"][topic] for topic in scores} == {topic: good[of] for topic, of in scores.items()}
    assert said["dead_letters"] == broken.total()
    assert said["scores_out"]["opinions"] == sum(
        map(opinions, (event for event in sent if event.topic == EVENTS_REVIEW))
    )
    assert 0 < said["latency_ms"]["p50"] <= said["latency_ms"]["p99"]
    assert said["events_per_second"] > 10
    assert said["alerts"] >= 0
    assert list(tmp_path.iterdir()) == []


def test_sigterm_ends_an_endless_demo_in_good_order(start, tmp_path):
    process, lines = start("--rate", "30")
    started = children(process.pid)
    assert sum("worker.cli.app" in line for line in started.values()) == 3
    process.terminate()
    assert process.wait(60) == 0
    wait_until_gone(started)
    assert any(re.match(r"Stopped: \d+ events in, \d+ scores out", line) for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_a_bounded_demo_that_is_interrupted_has_failed(start, tmp_path):
    process, lines = start("--rate", "30", "--events", "100000", "--exit")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 1
    assert any(line.startswith("millrace: interrupted with") for line in lines)
    assert next(tmp_path.glob("millrace-demo-*/worker.log")).exists()


def test_a_role_that_dies_is_named_with_its_log(start, tmp_path):
    process, lines = start("--rate", "30")
    started = children(process.pid)
    (profiles,) = (pid for pid, line in started.items() if "worker.cli.app profiles" in line)
    os.kill(profiles, signal.SIGKILL)
    assert process.wait(60) == 1
    wait_until_gone(started)
    (told,) = (line for line in lines if line.startswith("millrace:"))
    assert "profiles ended with exit code -9" in told
    assert next(tmp_path.glob("millrace-demo-*/profiles.log")).exists()


def test_a_role_that_cannot_start_is_told_with_its_last_words(tmp_path):
    config = embedded_config("127.0.0.1:1", "redis://127.0.0.1:1/0", model={"artifact": str(tmp_path / "absent")})
    deadline = time.monotonic() + 60

    def watch(roles):
        while time.monotonic() < deadline:
            roles.check()
            time.sleep(0.05)

    with (
        pytest.raises(RoleError, match=r"worker ended with exit code [1-9].*worker\.log"),
        Roles(config, tmp_path, ["worker"]) as roles,
    ):
        watch(roles)


def test_exit_without_events_is_refused():
    with pytest.raises(InputError, match="--events"):
        run_demo(embedded_config("-", "-"), exit_=True)
