"""Run many seeds of both simulated worlds; a failing one is shrunk to the fewest faults that still make it fail.

    python -m tests.simulation [--seeds N] [--from N] [--world NAME] [--seed N --faults JSON]

The worlds are ``worker`` (`tests.simulation.world`) and ``profiles`` (`tests.simulation.profiles_world`). Last line: a
JSON object with ``seeds`` (of each world), ``from``, ``events``, ``faults``, ``kinds``, ``violations`` (world and seed
to what was violated), ``worlds`` (world to its own events, faults, kinds, digest), ``commit``, and ``digest``, which is
the same for the same seeds on every machine. Exit code 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import msgspec
from rich.progress import track

from tests.chaos.audit import commit
from tests.simulation import profiles_world
from tests.simulation import world as worker_world
from tests.simulation.turns import Fault

CHUNK = 20
WORLDS: dict[str, Any] = {"worker": worker_world, "profiles": profiles_world}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many of each world")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one")
    parser.add_argument("--world", choices=list(WORLDS), help="only this one; with --seed, else the worker's")
    parser.add_argument("--seed", type=int, help="one seed alone, told in full")
    parser.add_argument("--faults", help="with --seed: these faults instead of its own, as a failing run prints them")
    args = parser.parse_args()
    if args.seed is not None:
        return alone(args.world or "worker", args.seed, args.faults)
    return campaign(args.first, args.seeds, [args.world] if args.world else list(WORLDS))


def campaign(first: int, seeds: int, worlds: Sequence[str]) -> int:
    """All seeds of the worlds, on all cores."""
    told: dict[str, dict[str, Any]] = {}
    violations: dict[str, list[str]] = {}
    starts = range(first, first + seeds, CHUNK)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for world in worlds:
            digest, events, faults = hashlib.blake2b(digest_size=16), 0, Counter[str]()
            chunks = [(world, range(n, min(n + CHUNK, first + seeds))) for n in starts]
            for result in track(pool.map(_chunk, chunks), world, len(chunks), disable=not sys.stderr.isatty()):
                digest.update(result["digest"].encode())
                events += result["events"]
                faults.update(result["faults"])
                for seed, found in result["violations"].items():
                    violations[f"{world} {seed}"] = found
                    _tell(world, seed, found)
            counts = {"faults": sum(faults.values()), "kinds": len(faults)}
            told[world] = {"events": events, **counts, "digest": digest.hexdigest()}
    summary: dict[str, Any] = {"seeds": seeds, "from": first}
    summary |= {name: sum(own[name] for own in told.values()) for name in ("events", "faults", "kinds")}
    digest = hashlib.blake2b("".join(own["digest"] for own in told.values()).encode(), digest_size=16)
    summary |= {"commit": commit()}
    print(json.dumps({**summary, "violations": violations, "worlds": told, "digest": digest.hexdigest()}))
    return 1 if violations else 0


def alone(world: str, seed: int, faults: str | None) -> int:
    """One seed, its faults and what was violated."""
    simulated = WORLDS[world]
    chosen = simulated.faults_of(seed) if faults is None else msgspec.json.decode(faults, type=list[Fault])
    for fault in chosen:
        print(f"turn {fault.tick:4d}  {fault.kind} {fault.detail} process {fault.worker} {fault.amount:.3f}")
    outcome = simulated.simulate(seed, chosen)
    print("\n".join(outcome.violations) or "all promises kept")
    print(
        json.dumps({"seed": seed, "events": outcome.events, "digest": outcome.digest, "kept": not outcome.violations})
    )
    return 1 if outcome.violations else 0


def shrink(seed: int, faults: Sequence[Fault], world: str = "worker") -> list[Fault]:
    """The fewest faults, found by leaving out one after the other, with which the seed still fails."""
    kept = list(faults)
    for fault in faults:
        fewer = [other for other in kept if other is not fault]
        if run_one(seed, fewer, world)[0]:
            kept = fewer
    return kept


def run_one(
    seed: int, faults: Sequence[Fault] | None, world: str = "worker"
) -> tuple[list[str], str, int, Counter[str]]:
    """Violations, digest, number of events, and what happened."""
    try:
        outcome = WORLDS[world].simulate(seed, faults)
    except Exception as error:  # noqa: BLE001 whatever the core raises is a violation, to be shrunk like any other
        return [f"raised {type(error).__name__}: {error}"], "", 0, Counter()
    return outcome.violations, outcome.digest, outcome.events, outcome.happened


def _tell(world: str, seed: int, found: list[str]) -> None:
    fewest = shrink(seed, WORLDS[world].faults_of(seed), world)
    print(f"{world} seed {seed}: {'; '.join(found[:3])}")
    faults = msgspec.json.encode(fewest).decode()
    print(f"  python -m tests.simulation --world {world} --seed {seed} --faults '{faults}'")


def _chunk(chunk: tuple[str, range]) -> dict[str, Any]:
    logging.disable(logging.CRITICAL)  # thousands of provoked errors
    world, seeds = chunk
    violations: dict[int, list[str]] = {}
    digests, events, faults = [], 0, Counter[str]()
    for seed in seeds:
        found, digest, count, happened = run_one(seed, None, world)
        digests.append(digest)
        events += count
        faults += happened
        if found:
            violations[seed] = found
    return {"digest": "".join(digests), "events": events, "faults": dict(faults), "violations": violations}


if __name__ == "__main__":
    sys.exit(main())
