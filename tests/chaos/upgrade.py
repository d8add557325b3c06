"""Workers and profiles of an earlier release become those of this one, one by one, and earlier ones again.

    python -m tests.chaos.upgrade [--release COMMIT] [--times 5] [--rate 100] [--seed N]

One real broker, a Redis, two workers and one profiles process with the null model, while events keep coming. In every
round each is told to stop, ends cleanly, and its successor is of the other release; between two steps both releases
share the partitions. In the end every event has its output exactly once and in order, and every state is that of plain
arithmetic. Last line: one JSON object with ``release``, ``changes``, ``events``, ``lost``, ``duplicated``,
``reordered``, ``state_mismatches``, ``seed``, ``commit``. Exit code 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.progress import track

from schemas.topics import FOLDS
from tests.chaos.audit import audit, commit
from tests.chaos.cluster import KafkaCluster
from tests.chaos.kills import Feeder, fresh_sections
from tests.chaos.redis_pair import RedisPair
from tests.chaos.storms import await_stable
from tests.real.proof import Role, state_mismatches, wait_until_both_committed, write_config
from worker.config import Config
from worker.kafka.admin import create_topics

ROOT: Final = Path(__file__).resolve().parents[2]
RELEASE: Final = "73d28fd"
"""Before profiles' features and offsets went in one transaction, and before worker/ had rooms."""


class NoReleaseError(Exception):
    """The commit is not in this repository, as in a shallow clone."""


def release(name: str, folder: Path) -> Path:
    """The tree of a commit, unpacked into a folder. Raises `NoReleaseError`."""
    done = subprocess.run(["git", "-C", str(ROOT), "archive", name], capture_output=True, check=False)
    if done.returncode:
        raise NoReleaseError(f"{name}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


class Shop:
    """Two workers and one profiles process, each of some release."""

    def __init__(self, sections: dict[str, dict[str, Any]], folder: Path, first: Path) -> None:
        self.config = msgspec.convert(sections, Config)
        self._sections, self._folder = sections, folder
        self._roles: dict[str, Role] = {}
        for name in ("worker-0", "worker-1", "profiles"):
            self._start(name, first)

    def change(self, tree: Path) -> int:
        """Every process becomes one of this tree, one after the other; how many."""
        for name, role in list(self._roles.items()):
            role.stop()
            self._start(name, tree)
            await_stable(self.config, workers=2, check=self.check)
        return len(self._roles)

    def check(self) -> None:
        """Fail when one has ended by itself."""
        for role in self._roles.values():
            role.check()

    def stop(self) -> None:
        """All of them, cleanly."""
        with ExitStack() as stack:
            for role in self._roles.values():
                stack.callback(role.stop)

    def _start(self, name: str, tree: Path) -> None:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        slot = {"worker": {"slot": f"{self._sections['worker']['slot']}-{name}"}}
        self._roles[name] = Role(name.partition("-")[0], write_config(folder, **{**self._sections, **slot}), tree=tree)


def upgrade(
    bootstrap: str, redis_url: str, folder: Path, earlier: Path, times: int, rate: int, seed: int
) -> dict[str, Any]:
    """From the earlier release to this one and back, so many times, and to this one in the end."""
    sections = fresh_sections(bootstrap, seed, static_members=False)
    sections["redis"]["url"] = redis_url
    config = msgspec.convert(sections, Config)
    create_topics(config.kafka, replication=1)
    feeder, shop = Feeder(config, rate, seed), Shop(sections, folder, earlier)
    changes = 0
    try:
        await_stable(config, workers=2, check=shop.check)
        feeder.start()
        for n in track(range(2 * times - 1), "changes of release", disable=not sys.stderr.isatty()):
            changes += shop.change(earlier if n % 2 else ROOT)
        feeder.finish()
        wait_until_both_committed(config.kafka)
    finally:
        feeder.finish()
        shop.stop()
    found, wrong = audit(bootstrap, config.kafka), 0
    for kind, name in FOLDS.items():
        wrong += state_mismatches(bootstrap, redis_url, config.kafka.topic(name), kind, config.profiles.scales_s)[1]
    return {"changes": changes, **found.figures(), "state_mismatches": wrong, "examples": found.examples}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="upgrade", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--release", default=RELEASE, help="a commit")
    parser.add_argument("--times", type=int, default=5, help="upgrades, with a downgrade between two")
    parser.add_argument("--rate", type=int, default=100, help="events a second")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            earlier = release(args.release, folder / "earlier")
        except NoReleaseError as error:
            parser.error(str(error))
        cluster = stack.enter_context(KafkaCluster(folder / "kafka", nodes=1))
        pair = stack.enter_context(RedisPair(folder / "redis", seed=args.seed))
        found = upgrade(cluster.direct, pair.url, folder, earlier, args.times, args.rate, args.seed)
    print(json.dumps({"release": args.release, **found, "seed": args.seed, "commit": commit()}))
    broken = found["lost"] or found["duplicated"] or found["reordered"] or found["state_mismatches"]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
