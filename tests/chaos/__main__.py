"""Break everything, two and more at once, while events flow; then ask a committed reader what became of them.

    python -m tests.chaos [--events 1000000] [--faults 300] [--seed 1] [--rate 1000] [--keep FOLDER]

Three real brokers behind a bad network, a Redis pair, three workers and two profiles under a supervisor. Last line: one
JSON object: ``events``, ``faults``, ``kinds``, ``lost``, ``duplicated``, ``reordered``, ``state_mismatches``, ``seed``,
``commit``, and ``bound_95``, the rate of violations that zero in so many events rules out (3/N). Exit code 1 when a
promise was broken. The log of faults and of every role stays in the folder.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import kafka.errors
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from schemas.topics import FOLDS
from tests.chaos.audit import audit, commit
from tests.chaos.cluster import KafkaCluster
from tests.chaos.faults import FAULTS, SMALL_DISK_NODE, Fault
from tests.chaos.kills import Feeder
from tests.chaos.redis_pair import RedisPair
from tests.chaos.site import Site
from tests.real.proof import state_mismatches, wait_until_both_committed

SMALL_DISK_MB: Final = 4000
SETTLE_S: Final = 3.0
"""Between the end of a fault that holds a broker down and the next of its kind all copies must be in sync again."""


@dataclass(frozen=True, slots=True)
class _Active:
    """A fault at work: at least until ``until_s``, and until it has begun."""

    until_s: float
    fault: Fault
    target: Any
    begun: Future[object]


class Campaign:
    """Draws faults, begins and ends them on time, at most as many at once as `AT_ONCE`."""

    AT_ONCE: Final = 3

    def __init__(self, site: Site, faults: int, events: int, seed: int) -> None:
        self._site, self._left, self._events = site, faults, events
        self._faults = faults
        self._rng = random.Random(seed)
        self._active: list[_Active] = []
        self._beside = ThreadPoolExecutor(self.AT_ONCE, thread_name_prefix="fault")
        self._next_s = time.monotonic() + 5.0
        self.begun: Counter[str] = Counter()
        self.together = 0

    def turn(self, sent: int) -> None:
        """End what is over, begin what is due. Faults are spread over the events."""
        now = time.monotonic()
        for entry in [entry for entry in self._active if entry.until_s <= now and entry.begun.done()]:
            self._end(entry)
        done = self._faults - self._left
        behind = done / max(self._faults, 1) <= sent / self._events
        if self._left and behind and len(self._active) < self.AT_ONCE and now >= self._next_s:
            self._begin()

    def finish(self) -> None:
        """End everything: first what others may wait for."""
        for entry in sorted(self._active, key=lambda entry: entry.fault.slow):
            self._end(entry)
        self._beside.shutdown()

    @property
    def left(self) -> int:
        """Faults not yet begun, and those of which it is not certain."""
        return self._left + sum(entry.fault.slow for entry in self._active)

    def _begin(self) -> None:
        taken = {entry.fault.uses for entry in self._active}
        choices = [fault for fault in FAULTS if fault.uses not in taken]
        fault = self._rng.choice(choices)
        if fault.uses == "broker":
            self._site.cluster.wait_until_in_sync()
        target = fault.target(self._rng)
        self._site.say("begin", kind=fault.kind, target=target)
        begun = self._beside.submit(fault.begin, self._site, target)
        if not fault.slow:
            begun.result()
        self.begun[fault.kind] += 1
        self.together += bool(self._active)
        self._left -= 1
        now = time.monotonic()  # to begin may have taken a while
        self._active.append(_Active(now + self._rng.uniform(*fault.hold_s), fault, target, begun))
        # Often at once with the next.
        self._next_s = now if self._rng.random() < 0.5 else now + self._rng.uniform(0.2, 2.0)

    def _end(self, entry: _Active) -> None:
        self._active.remove(entry)
        fault = entry.fault
        try:
            entry.begun.result()
        except (TimeoutError, kafka.errors.KafkaError) as error:
            # Asked of a cluster that other faults had hold of: it did not happen, and is not counted.
            self.begun -= Counter([fault.kind])
            self._left += 1
            self._site.say("could not be done", kind=fault.kind, target=entry.target, error=type(error).__name__)
            return
        fault.end(self._site, entry.target)
        self._site.say("end", kind=fault.kind, target=entry.target)


def run(folder: Path, events: int, faults: int, seed: int, rate: int) -> dict[str, Any]:
    """One campaign; its figures."""
    started = time.monotonic()
    with ExitStack() as stack:
        cluster = stack.enter_context(
            KafkaCluster(folder / "kafka", seed=seed, small_disks_mb={SMALL_DISK_NODE: SMALL_DISK_MB})
        )
        redis = stack.enter_context(RedisPair(folder / "redis", seed=seed))
        site = Site(folder, cluster, redis, seed)
        stack.callback(site.stop)
        feeder = Feeder(site.config, rate, seed, users=500)
        campaign = Campaign(site, faults, events, seed)
        progress = stack.enter_context(_progress())
        bar = progress.add_task("events", total=events, faults=0, kinds=0)
        feeder.start()
        while feeder.sent < events or campaign.left:
            site.tend()
            campaign.turn(feeder.sent)
            progress.update(bar, completed=feeder.sent, faults=faults - campaign.left, kinds=len(campaign.begun))
            time.sleep(0.1)
        campaign.finish()
        cluster.wait_until_in_sync()
        feeder.finish()
        wait_until_both_committed(site.direct, meanwhile=site.tend, timeout_s=600)
        found = audit(cluster.direct, site.direct)
        mismatches = 0
        for kind, name in FOLDS.items():
            scales = site.config.profiles.scales_s
            mismatches += state_mismatches(cluster.direct, redis.url, site.direct.topic(name), kind, scales)[1]
    return {
        "events": found.events,
        "faults": sum(campaign.begun.values()),
        "kinds": len(campaign.begun),
        "together": campaign.together,
        "lost": found.lost,
        "duplicated": found.duplicated,
        "reordered": found.reordered,
        "state_mismatches": mismatches,
        "examples": found.examples,
        "ended_by_themselves": len(site.ends),
        "bound_95": 3 / max(found.events, 1),
        "seconds": round(time.monotonic() - started),
        "seed": seed,
        "commit": commit(),
        "by_kind": dict(sorted(campaign.begun.items())),
    }


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.completed:.0f} of {task.total:.0f} events"),
        BarColumn(),
        TextColumn("{task.fields[faults]} faults of {task.fields[kinds]} kinds"),
        TimeElapsedColumn(),
        disable=not sys.stderr.isatty(),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=int, default=1000, help="events a second")
    parser.add_argument("--keep", type=Path, help="folder for logs; a temporary one when left out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        figures = run(folder, args.events, args.faults, args.seed, args.rate)
    print(json.dumps(figures))
    broken = any(figures[name] for name in ("lost", "duplicated", "reordered", "state_mismatches"))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
