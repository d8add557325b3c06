"""The profiles role under hundreds of seeds of faults; and proof that a broken safeguard would be seen."""

import pytest

from tests.simulation.__main__ import run_one, shrink
from tests.simulation.mutants import broken, seeds_for
from tests.simulation.profiles_mutants import MUTANTS
from tests.simulation.profiles_world import faults_of, simulate

MUTANT_SEEDS = 400
"""Enough for the rarest: to sleep at the right moment while the shards go to another."""


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_a_broken_safeguard_is_noticed(mutant: str, caplog: pytest.LogCaptureFixture) -> None:
    with broken(mutant):
        assert any(noticed(seed) for seed in seeds_for(mutant, MUTANT_SEEDS)), (
            f"nobody noticed in {MUTANT_SEEDS} seeds: {mutant}"
        )


def test_a_failing_schedule_is_shrunk_to_what_matters() -> None:
    with broken("the fence record leaves before its states"):
        seed = next(seed for seed in range(MUTANT_SEEDS) if noticed(seed))
        fewest = shrink(seed, faults_of(seed), "profiles")
        assert len(fewest) < len(faults_of(seed))
        assert any(fault.kind in ("flush", "fail over") or fault.detail == "half:flush" for fault in fewest)
        assert simulate(seed, fewest).violations


def test_without_faults_nothing_goes_wrong() -> None:
    outcome = simulate(3, [])
    assert outcome.violations == []
    assert not outcome.happened


def noticed(seed: int) -> bool:
    return bool(run_one(seed, None, "profiles")[0])
