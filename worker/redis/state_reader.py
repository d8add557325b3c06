"""States in Redis, for the worker: read best-effort, within a bound of time, never raising."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

import redis

from schemas.folds import FormatError
from schemas.redis_keys import Kind, fence_key, state_key
from schemas.scores import StateSource
from schemas.shards import shard_of
from schemas.states import State, decode_fence, decode_state
from worker.config import Config
from worker.redis.breaker import Breaker
from worker.redis.redis_errors import refusal
from worker.redis.store import MAX_KEYS_PER_CALL, connect, mget_answer, where

_log = logging.getLogger(__name__)

FENCE_CACHE_S: Final = 1.0
JITTER: Final = 0.25
"""Waits are longer or shorter by up to this share, so that many workers do not come back to Redis at one moment."""


class StateReader:
    """Reads states for scoring: best-effort, bounded, never raising.

    One call waits at most ``redis.timeout_ms`` for an answer (twice that if a dead connection must be made anew:
    one retry). After ``breaker_failures`` calls in a row without an answer Redis is left alone for
    ``breaker_open_ms``: calls return at once with nothing. ``count`` is told how many states came back
    ``known``, ``cold`` or ``unavailable``.
    """

    def __init__(
        self,
        config: Config,
        space: str,
        count: Callable[[StateSource, int], None] = lambda result, n: None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(1 - JITTER, 1 + JITTER),  # noqa: S311 no secret
    ) -> None:
        self._jitter = jitter
        self._timeout_s = config.redis.timeout_ms / 1000
        self._redis = connect(config.redis, self._timeout_s)
        self._space = space
        self._shards = config.kafka.fold_shards
        self._scales = len(config.profiles.scales_s)
        self._count = count
        self._clock = clock
        self._breaker = Breaker(config.redis.breaker_failures, config.redis.breaker_open_ms / 1000)
        self._incarnations: dict[str, tuple[float, int | None]] = {}
        self._where, self._complained = where(config.redis.url), False

    def read(
        self, user_ids: Sequence[str], item_ids: Sequence[str]
    ) -> tuple[list[State | None], list[State | None], StateSource]:
        """States of users and items in one round trip, None where cold; ids may repeat.

        The third value is ``known`` when Redis answered, ``unavailable`` when it did not (then all are None).
        """
        wanted: list[tuple[Kind, str]] = [("user", i) for i in user_ids]
        wanted += [("item", i) for i in item_ids]
        if not wanted:
            return [], [], "known"
        found = self._read(list(dict.fromkeys(wanted)))
        if found is None:
            self._count("unavailable", len(wanted))
            return [None] * len(user_ids), [None] * len(item_ids), "unavailable"
        states = [found.get(pair) for pair in wanted]
        known = sum(state is not None for state in states)
        self._count("known", known)
        self._count("cold", len(states) - known)
        return states[: len(user_ids)], states[len(user_ids) :], "known"

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def _read(self, wanted: list[tuple[Kind, str]]) -> dict[tuple[Kind, str], State] | None:
        start = self._clock()
        if not self._breaker.allows(start):
            return None
        found: dict[tuple[Kind, str], State] = {}
        for first in range(0, len(wanted), MAX_KEYS_PER_CALL):
            late = self._clock() - start > self._timeout_s
            part = None if late else self._read_part(wanted[first : first + MAX_KEYS_PER_CALL])
            if part is None:
                self._breaker.failed(self._clock(), self._jitter())
                return None
            found |= part
        self._breaker.succeeded()
        return found

    def _read_part(self, wanted: list[tuple[Kind, str]]) -> dict[tuple[Kind, str], State] | None:
        names, fences = [], []
        now = self._clock()
        for kind, key in wanted:
            shard = shard_of(key, self._shards)
            names.append(state_key(self._space, kind, shard, key))
            fences.append(fence_key(self._space, kind, shard))
        stale = [f for f in dict.fromkeys(fences) if self._incarnations.get(f, (-FENCE_CACHE_S, None))[0] <= now]
        values = self._mget(stale + names)
        if values is None:
            return None
        for fence, value in zip(stale, values, strict=False):
            self._incarnations[fence] = (now + FENCE_CACHE_S * self._jitter(), _incarnation(value))
        states: dict[tuple[Kind, str], State] = {}
        for pair, fence, value in zip(wanted, fences, values[len(stale) :], strict=True):
            state = _readable(value, pair)
            if state is None or state.incarnation != self._incarnations[fence][1]:
                continue
            if state.weights.shape[1] == self._scales:
                states[pair] = state
        return states

    def _mget(self, keys: list[str]) -> list[bytes | None] | None:
        for attempt in (1, 2):
            try:
                values = mget_answer(self._redis.mget(keys), len(keys))
            except redis.exceptions.TimeoutError:
                return None  # slow, not gone: asking again would double the wait
            except (redis.exceptions.ConnectionError, OSError) as error:
                if attempt == 2:
                    self._complain(error)
            except (redis.RedisError, ValueError, TypeError) as error:
                self._complain(error)
                return None  # refused, or nonsense
            else:
                if values is None:
                    # Out of step: what comes next may be the answer to this question.
                    self._redis.connection_pool.disconnect()
                return values
        return None

    def _complain(self, error: BaseException) -> None:
        """Say once what waiting does not mend; the worker scores without states all the same."""
        why = refusal(error)
        if why is not None and not self._complained:
            _log.error("Redis at %s: %s. Scoring goes on without states", self._where, why)
            self._complained = True


def _incarnation(fence: bytes | None) -> int | None:
    try:
        return None if fence is None else decode_fence(fence).incarnation
    except FormatError:
        return None  # written by a newer release, or damaged: its states read as absent; profiles complains aloud


def _readable(value: bytes | None, pair: tuple[Kind, str]) -> State | None:
    if value is None:
        return None
    try:
        state = decode_state(value)
    except (FormatError, UnicodeDecodeError):
        return None
    return state if (state.kind, state.key) == pair else None
