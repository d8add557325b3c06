"""Run many seeds of the simulation; a failing one is shrunk to the fewest faults that still make it fail.

    python -m tests.simulation [--seeds N] [--from N] [--seed N --faults JSON]

Last line: one JSON object with ``seeds``, ``from``, ``events``, ``faults``, ``violations`` (seed to what was violated)
and ``digest``, which is the same for the same seeds on every machine. Exit code 1 when a promise was broken.
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

from tests.simulation.world import Fault, faults_of, simulate

CHUNK = 20


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one")
    parser.add_argument("--seed", type=int, help="one seed alone, told in full")
    parser.add_argument("--faults", help="with --seed: these faults instead of its own, as a failing run prints them")
    args = parser.parse_args()
    if args.seed is not None:
        return alone(args.seed, args.faults)
    return campaign(args.first, args.seeds)


def campaign(first: int, seeds: int) -> int:
    """All seeds, on all cores."""
    digest, events, faults = hashlib.blake2b(digest_size=16), 0, Counter[str]()
    violations: dict[int, list[str]] = {}
    chunks = [range(n, min(n + CHUNK, first + seeds)) for n in range(first, first + seeds, CHUNK)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for result in track(pool.map(_chunk, chunks), "seeds", len(chunks), disable=not sys.stderr.isatty()):
            digest.update(result["digest"].encode())
            events += result["events"]
            faults.update(result["faults"])
            violations.update(result["violations"])
    for seed, found in violations.items():
        fewest = shrink(seed, faults_of(seed))
        print(f"seed {seed}: {'; '.join(found[:3])}")
        print(f"  python -m tests.simulation --seed {seed} --faults '{msgspec.json.encode(fewest).decode()}'")
    summary = {"seeds": seeds, "from": first, "events": events, "faults": sum(faults.values()), "kinds": len(faults)}
    print(json.dumps({**summary, "violations": violations, "digest": digest.hexdigest()}))
    return 1 if violations else 0


def alone(seed: int, faults: str | None) -> int:
    """One seed, its faults and what was violated."""
    chosen = faults_of(seed) if faults is None else msgspec.json.decode(faults, type=list[Fault])
    for fault in chosen:
        print(f"turn {fault.tick:4d}  {fault.kind} {fault.detail} worker {fault.worker} {fault.amount:.3f}")
    outcome = simulate(seed, chosen)
    print("\n".join(outcome.violations) or "all promises kept")
    print(
        json.dumps({"seed": seed, "events": outcome.events, "digest": outcome.digest, "kept": not outcome.violations})
    )
    return 1 if outcome.violations else 0


def shrink(seed: int, faults: Sequence[Fault]) -> list[Fault]:
    """The fewest faults, found by leaving out one after the other, with which the seed still fails."""
    kept = list(faults)
    for fault in faults:
        fewer = [other for other in kept if other is not fault]
        if _fails(seed, fewer):
            kept = fewer
    return kept


def _fails(seed: int, faults: Sequence[Fault]) -> bool:
    return bool(run_one(seed, faults)[0])


def run_one(seed: int, faults: Sequence[Fault] | None) -> tuple[list[str], str, int, Counter[str]]:
    """Violations, digest, number of events, and what happened."""
    try:
        outcome = simulate(seed, faults)
    except Exception as error:  # noqa: BLE001 whatever the core raises is a violation, to be shrunk like any other
        return [f"raised {type(error).__name__}: {error}"], "", 0, Counter()
    return outcome.violations, outcome.digest, outcome.events, outcome.happened


def _chunk(seeds: range) -> dict[str, Any]:
    logging.disable(logging.CRITICAL)  # thousands of provoked errors
    violations: dict[int, list[str]] = {}
    digests, events, faults = [], 0, Counter[str]()
    for seed in seeds:
        found, digest, count, happened = run_one(seed, None)
        digests.append(digest)
        events += count
        faults += happened
        if found:
            violations[seed] = found
    return {"digest": "".join(digests), "events": events, "faults": dict(faults), "violations": violations}


if __name__ == "__main__":
    sys.exit(main())
