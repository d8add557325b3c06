"""States in Redis, for the worker: read best-effort, within a bound of time, never raising."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

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
    one retry). After ``breaker_failures`` calls in a row without a whole answer Redis is left alone for
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

        The third value is ``known`` when Redis answered, ``unavailable`` when it did not, or not to all in time: then
        None says nothing, and what did come is there.
        """
        wanted: list[tuple[Kind, str]] = [("user", i) for i in user_ids]
        wanted += [("item", i) for i in item_ids]
        if not wanted:
            return [], [], "known"
        found, answered = self._read(list(dict.fromkeys(wanted)))
        states = [found.get(pair) for pair in wanted]
        known = sum(state is not None for state in states)
        self._count("known", known)
        self._count("cold" if answered else "unavailable", len(states) - known)
        return states[: len(user_ids)], states[len(user_ids) :], "known" if answered else "unavailable"

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def _read(self, wanted: list[tuple[Kind, str]]) -> tuple[dict[tuple[Kind, str], State], bool]:
        """The states that there are, and whether Redis answered to all that was asked."""
        now = self._clock()
        if not self._breaker.allows(now):
            return {}, False
        names, fences = [], []
        for kind, key in wanted:
            shard = shard_of(key, self._shards)
            names.append(state_key(self._space, kind, shard, key))
            fences.append(fence_key(self._space, kind, shard))
        stale = [f for f in dict.fromkeys(fences) if self._incarnations.get(f, (-FENCE_CACHE_S, None))[0] <= now]
        values = self._values(stale + names)
        answered = len(values) == len(stale) + len(names)
        if answered:
            self._breaker.succeeded()
        else:
            self._breaker.failed(self._clock(), self._jitter())
        for fence, value in zip(stale, values, strict=False):
            self._incarnations[fence] = (now + FENCE_CACHE_S * self._jitter(), _incarnation(value))
        states: dict[tuple[Kind, str], State] = {}
        for pair, fence, value in zip(wanted, fences, values[len(stale) :], strict=answered):
            state = _readable(value, pair)
            if state is None or state.incarnation != self._incarnations[fence][1]:
                continue
            if state.weights.shape[1] == self._scales:
                states[pair] = state
        return states, answered

    def _values(self, keys: list[str]) -> list[bytes | None]:
        """Values of the keys, or of the first of them, as far as they came in time; none where Redis is away, refuses
        or answers nonsense."""
        for attempt in (1, 2):
            try:
                return self._mget(keys)
            except redis.exceptions.TimeoutError:
                return []  # slow, not gone: asking again would double the wait
            except (redis.exceptions.ConnectionError, OSError) as error:
                if attempt == 2:
                    self._complain(error)
            except (redis.RedisError, ValueError, TypeError) as error:
                self._complain(error)
                return []  # refused, or nonsense
        return []

    def _mget(self, keys: list[str]) -> list[bytes | None]:
        """As `_values`: all keys go out together, in calls of `MAX_KEYS_PER_CALL`, and within one time-out the last of
        their answers has begun. A pipeline of the client's own would give up what came before one that is late.

        Raises `redis.RedisError`, and what its parser raises for nonsense.
        """
        calls = [keys[first : first + MAX_KEYS_PER_CALL] for first in range(0, len(keys), MAX_KEYS_PER_CALL)]
        values: list[bytes | None] = []
        pool = self._redis.connection_pool
        connection: Any = pool.get_connection()
        until = self._clock() + self._timeout_s
        try:
            connection.send_packed_command(connection.pack_commands([("MGET", *call) for call in calls]))
            with suppress(redis.exceptions.TimeoutError):  # slow, not gone: what came before is kept
                for call in calls:
                    if not connection.can_read(max(until - self._clock(), 0.0)):
                        break
                    answer = mget_answer(connection.read_response(), len(call))
                    if answer is None:
                        raise redis.exceptions.InvalidResponse("no answer to the question")
                    values += answer
        finally:
            if len(values) < len(keys):
                # What this connection says next may be the answer to this question.
                connection.disconnect()
            pool.release(connection)
        return values

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
