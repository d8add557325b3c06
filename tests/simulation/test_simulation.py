"""Both worlds under hundreds of seeds of faults; and proof that a broken safeguard of the worker would be seen."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.simulation import profiles_world
from tests.simulation.__main__ import run_one, shrink
from tests.simulation.mutants import MUTANTS, broken, seeds_for
from tests.simulation.turns import Fault, Outcome
from tests.simulation.world import faults_of, simulate

MUTANT_SEEDS = 1000
"""Enough for the rarest: a fault at the right moment of two workers' turns."""


@pytest.mark.parametrize(("world", "seeds"), [("worker", 1000), ("profiles", 200)])
def test_seeds_keep_every_promise(world: str, seeds: int) -> None:
    command = [sys.executable, "-m", "tests.simulation", "--world", world, "--seeds", str(seeds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["seeds"] == seeds
    assert told["violations"] == {}
    assert told["kinds"] >= 20, "the faults that the seeds bring are too much of a kind"


def test_both_worlds_run_unless_one_is_named() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seeds", "3", "--from", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["worlds"]) == {"worker", "profiles"}
    for name in ("events", "faults", "kinds"):
        assert told[name] == sum(own[name] for own in told["worlds"].values()) > 0


@pytest.mark.parametrize(("world", "simulate"), [("worker", simulate), ("profiles", profiles_world.simulate)])
def test_a_seed_replays_byte_for_byte_in_another_process(world: str, simulate: Callable[[int], Outcome]) -> None:
    command = [sys.executable, "-m", "tests.simulation", "--world", world, "--seed", "14"]
    digests = {simulate(14).digest}
    for hash_seed in ("1", "2"):
        # Of ours too: OPENBLAS_CORETYPE chooses kernels, and with them the last digits.
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        digests.add(json.loads(done.stdout.splitlines()[-1])["digest"])
    assert len(digests) == 1
    assert simulate(15).digest not in digests


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_a_broken_safeguard_is_noticed(mutant: str, caplog: pytest.LogCaptureFixture) -> None:
    with broken(mutant):
        for seed in seeds_for(mutant, MUTANT_SEEDS):
            if noticed(seed):
                return
    pytest.fail(f"nobody noticed in {MUTANT_SEEDS} seeds: {mutant}")


def test_a_failing_schedule_is_shrunk_to_what_matters() -> None:
    with broken("an unknown outcome counts as aborted"):
        seed = next(seed for seed in range(MUTANT_SEEDS) if noticed(seed))
        fewest = shrink(seed, faults_of(seed))
        assert len(fewest) < len(faults_of(seed))
        assert any(fault.detail.startswith(("commit:", "offsets:")) or fault.kind == "away" for fault in fewest)
        assert simulate(seed, fewest).violations


@pytest.mark.parametrize(
    ("seed", "faults"),
    [
        # A commit that waited for its thread went out after its partition was handed over; among the first 8,000 seeds.
        (7694, [[209, "start", 2, "", 0.581], [212, "hijack", 2, "", 0.742], [231, "stuck", 2, "", 0.622],
                [232, "call", 2, "commit:happened", 0.178]]),
    ],
)  # fmt: skip
def test_schedules_that_once_broke_a_promise(seed: int, faults: list[list[Any]]) -> None:
    assert simulate(seed, msgspec.convert(faults, list[Fault])).violations == []


def test_without_faults_nothing_goes_wrong() -> None:
    outcome = simulate(3, [])
    assert outcome.violations == []
    assert not outcome.happened


def test_a_fault_that_nobody_is_there_for_is_no_fault() -> None:
    assert simulate(3, [Fault(5, "crash", 2), Fault(6, "stop", 2)]).violations == []


def noticed(seed: int) -> bool:
    return bool(run_one(seed, None)[0])
