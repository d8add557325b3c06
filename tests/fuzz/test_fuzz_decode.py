"""A short run of `make fuzz`, and that the fuzzer would tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from schemas.dead import DeadLetter
from schemas.events import Event
from tests.fuzz.fuzz_decode import Decode, Oracle, fuzz
from worker.kafka.records import Record
from worker.scoring.decode import LANES, Decoder

INPUTS = 3000
real = Decoder(LANES).decode


def test_any_bytes_give_an_event_within_limits_or_a_letter_with_the_original_bytes() -> None:
    oracle = Oracle()
    fuzz(INPUTS, 7, oracle)
    assert sum(oracle.seen.values()) == INPUTS
    # It reaches what it is for: events, and letters of nearly every reason.
    assert oracle.seen["event"] > INPUTS / 10
    assert len(oracle.seen) >= 8


def crashing(record: Record, now_ms: int) -> Event | DeadLetter:
    if b"1e999" in (record.value or b""):
        raise ValueError
    return real(record, now_ms)


def rewriting(record: Record, now_ms: int) -> Event | DeadLetter:
    result = real(record, now_ms)
    return msgspec.structs.replace(result, value=b"") if isinstance(result, DeadLetter) else result


def generous(record: Record, now_ms: int) -> Event | DeadLetter:
    """Lets events from the future in."""
    return real(record, now_ms * 2)


def overlong(record: Record, now_ms: int) -> Event | DeadLetter:
    result = real(record, now_ms)
    return result if isinstance(result, DeadLetter) else msgspec.structs.replace(result, event_id="x" * 257)


@pytest.mark.parametrize("broken", [crashing, rewriting, generous, overlong])
def test_a_broken_decoder_is_found(broken: Decode) -> None:
    with pytest.raises((AssertionError, ValueError)):
        fuzz(INPUTS, 7, Oracle(broken))


def test_the_command_prints_one_json_line_last_and_a_seed_gives_the_same_inputs() -> None:
    script = Path(__file__).with_name("fuzz_decode.py")
    command = [sys.executable, str(script), "--inputs", "200", "--seed", "5"]
    lines = [
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=script.parents[2]).stdout
        for _ in range(2)
    ]
    first, second = (json.loads(text.splitlines()[-1]) for text in lines)
    assert (first["inputs"], first["failures"], first["seed"]) == (200, 0, 5)
    assert first["outcomes"] == second["outcomes"]
