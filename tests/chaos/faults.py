"""What goes wrong in a campaign: each fault begins, holds for a while, and is made good.

``uses`` says what a fault takes hold of: at most one fault holds a broker down at a time, since two of three copies
must stay (that is what the settings promise to survive), and one the same process; all else overlaps freely.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaException, Producer

from schemas.topics import FOLDS, INPUTS, SCORES_CTR
from tests.chaos.site import Site

SMALL_DISK_NODE: Final = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """``begin`` and ``end`` act on the site; ``target`` is drawn when the fault is. ``hold_s`` from and to.

    One that asks the cluster for something is ``slow`` to begin: it does so beside the others, whose ends it may need.
    """

    kind: str
    uses: str
    hold_s: tuple[float, float]
    begin: Callable[[Site, Any], object]
    end: Callable[[Site, Any], object] = lambda site, target: None
    target: Callable[[random.Random], Any] = lambda rng: None
    slow: bool = False


def _node(rng: random.Random) -> int:
    return rng.choice((1, 2, 3))


def _worker(rng: random.Random) -> str:
    return f"worker-{rng.randrange(Site.WORKERS)}"


def _profiles(rng: random.Random) -> str:
    return f"profiles-{rng.randrange(Site.PROFILES)}"


def _partition(rng: random.Random) -> tuple[str, int]:
    return rng.choice([*INPUTS, SCORES_CTR, FOLDS["user"]]), rng.randrange(4)


def _move(site: Site, where: tuple[str, int]) -> None:
    site.cluster.move_leader(site.config.kafka.topic(where[0]), where[1] % site.partitions(where[0]))


def _hijack(site: Site, name: str) -> None:
    """A stranger takes a worker's transactional id: the worker is fenced, and must come back."""
    stranger = Producer(
        {"bootstrap.servers": site.cluster.direct, "transactional.id": site.transactional_id(name), "log_level": 0}
    )
    try:
        stranger.init_transactions(10)
    except KafkaException:
        site.say(f"the id of {name} could not be taken")


def _restart(site: Site, node: int) -> None:
    site.cluster.stop(node)
    site.cluster.start(node)


def _storm(site: Site, _: Any) -> None:
    for slot in range(Site.WORKERS):
        site.want(f"worker-{slot}", running=slot % 2 == 0)


def _fill(site: Site, node: int) -> None:
    site.cluster.fill_disk(node)


def _free(site: Site, node: int) -> None:
    site.cluster.kill(node)
    site.cluster.free_disk(node)
    site.cluster.start(node)


FAULTS: Final = (
    Fault("worker killed", "process", (0, 1), lambda s, t: s.kill(t), target=_worker),
    Fault("worker paused", "process", (1, 4), Site.pause, Site.resume, _worker),
    Fault("worker paused past its session", "process", (12, 15), Site.pause, Site.resume, _worker),
    Fault(
        "worker stopped",
        "process",
        (1, 8),
        lambda s, t: s.want(t, running=False),
        lambda s, t: s.want(t, running=True),
        _worker,
    ),
    Fault("all workers killed", "process", (0, 1), lambda s, t: [s.kill(f"worker-{n}") for n in range(Site.WORKERS)]),
    Fault(
        "workers fewer and more",
        "process",
        (4, 8),
        _storm,
        lambda s, t: [s.want(f"worker-{n}", running=True) for n in range(Site.WORKERS)],
    ),
    Fault("transactional id hijacked", "process", (0, 1), _hijack, target=_worker, slow=True),
    Fault("profiles killed", "process", (0, 1), lambda s, t: s.kill(t), target=_profiles),
    Fault("profiles paused", "process", (1, 12), Site.pause, Site.resume, _profiles),
    Fault("broker killed", "broker", (2, 6), lambda s, n: s.cluster.kill(n), lambda s, n: s.cluster.start(n), _node),
    Fault("broker paused", "broker", (2, 12), lambda s, n: s.cluster.pause(n), lambda s, n: s.cluster.resume(n), _node),
    Fault("broker restarted", "broker", (1, 2), _restart, target=_node),
    Fault("disk full", "broker", (4, 8), _fill, _free, lambda rng: SMALL_DISK_NODE),
    Fault(
        "group coordinator paused",
        "broker",
        (2, 8),
        lambda s, t: s.pause_coordinator("group"),
        lambda s, t: s.resume_broker(),
    ),
    Fault(
        "transaction coordinator paused",
        "broker",
        (2, 8),
        lambda s, t: s.pause_coordinator("transaction"),
        lambda s, t: s.resume_broker(),
    ),
    Fault("leader moved", "leader", (0, 1), _move, target=_partition, slow=True),
    Fault("group coordinator moved", "leader", (0, 1), lambda s, t: s.move_coordinator("group"), slow=True),
    Fault("transaction coordinator moved", "leader", (0, 1), lambda s, t: s.move_coordinator("transaction"), slow=True),
    Fault(
        "network slow",
        "network",
        (3, 8),
        lambda s, n: s.cluster.weather(n, delay_ms=150, jitter_ms=100),
        lambda s, n: s.cluster.weather(n),
        _node,
    ),
    Fault(
        "network loses",
        "network",
        (2, 6),
        lambda s, n: s.cluster.weather(n, loss=0.02),
        lambda s, n: s.cluster.weather(n),
        _node,
    ),
    Fault(
        "answers held back",
        "network",
        (2, 11),
        lambda s, n: s.cluster.weather(n, hold_down=True),
        lambda s, n: s.cluster.weather(n),
        _node,
    ),
    Fault(
        "requests held back",
        "network",
        (2, 6),
        lambda s, n: s.cluster.weather(n, hold_up=True),
        lambda s, n: s.cluster.weather(n),
        _node,
    ),
    Fault("connections cut", "network", (0, 1), lambda s, n: s.cluster.cut(n), target=_node),
    Fault(
        "Redis killed",
        "redis",
        (1, 4),
        lambda s, t: s.redis.kill(s.redis.primary),
        lambda s, t: s.redis.start(s.redis.primary),
    ),
    Fault(
        "Redis paused",
        "redis",
        (1, 6),
        lambda s, t: s.redis.pause(s.redis.primary),
        lambda s, t: s.redis.resume(s.redis.primary),
    ),
    Fault("Redis flushed", "redis", (0, 1), lambda s, t: s.redis.flush()),
    Fault("Redis failed over", "redis", (1, 2), lambda s, t: s.redis.fail_over(), lambda s, t: s.redis.rejoin()),
    Fault(
        "Redis failed over to the past",
        "redis",
        (4, 6),
        lambda s, t: s.redis.detach(),
        lambda s, t: (s.redis.fail_over(), s.redis.rejoin()),
    ),
    Fault("Redis slow", "redis", (2, 6), lambda s, t: s.redis.weather(delay_ms=80), lambda s, t: s.redis.weather()),
)
