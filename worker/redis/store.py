"""States in Redis, for profiles: a fenced writer. (`worker.redis.state_reader` is the worker's best-effort reader.)

One Lua script writes the states of a shard and its fence together, only if the fence has exactly the bytes that
this writer left there. A second writer therefore writes nothing and is told so (`FenceMovedError`).

A shard without a fence is rebuilt under a claim (``<fence key>:rebuild``, the new incarnation): states are written
while the claim stands, the fence last, so that of two rebuilders only one can finish, and half a rebuild reads as
absent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from schemas.folds import FormatError
from schemas.redis_keys import Kind, fence_key, state_key
from schemas.states import State, decode_fence, decode_state, encode_state
from worker.config import RedisConfig
from worker.errors import ConfigError, FenceMovedError, MillraceError, StoreError, StoreRefusedError
from worker.redis.redis_errors import refusal

WRITE_TIMEOUT_S: Final = 5.0
"""Longest silence of Redis that the writer bears: its scripts are up to 2 MB, and it has no latency to keep."""
MAX_KEYS_PER_CALL: Final = 1024
"""States read or written by one call, about 1.7 MB."""

# KEYS: fence, claim, states...   ARGV: expected fence, expected claim, new fence, new claim, TTL s, states...
# '' stands for "no such key"; a state '' is deleted. Returns 1, or 0, and has written nothing, when
# fence or claim is not as expected. Times to live are spread over their last twentieth: what a rebuild writes at once
# does not expire at once.
_SCRIPT: Final = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] or (redis.call('GET', KEYS[2]) or '') ~= ARGV[2] then return 0 end
local ttl, spread = tonumber(ARGV[5]), math.floor(ARGV[5] / 20) + 1
for i = 3, #KEYS do
  if ARGV[i + 3] == '' then redis.call('DEL', KEYS[i])
  else redis.call('SET', KEYS[i], ARGV[i + 3], 'EX', ttl - (i * 7919) % spread) end
end
for i = 1, 2 do
  if ARGV[i + 2] ~= '' then redis.call('SET', KEYS[i], ARGV[i + 2]) else redis.call('DEL', KEYS[i]) end
end
return 1
"""
_SCRIPT_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


def connect(config: RedisConfig, timeout_s: float) -> redis.Redis:
    """A client that waits at most ``timeout_s`` per answer and never retries by itself. Connects at first use.

    Raises `ConfigError` for a URL that is none.
    """
    try:
        if _ends_within_password(config.url):
            raise _no_url()
        return redis.Redis.from_url(
            config.url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            # One round trip less at every connect, and no handshake whose answer the client would trust blindly.
            protocol=2,
            driver_info=None,
        )
    except ValueError:
        raise _no_url() from None


def _no_url() -> ConfigError:
    # What the parser says quotes the password's beginning, for it takes that for the port.
    return ConfigError(
        "redis.url: not the URL of a Redis, redis://USER:PASSWORD@HOST:6379/0 (or rediss://, unix://). In user and"
        " password / # ? @ : and % are percent-encoded: # is %23"
    )


def _ends_within_password(url: str) -> bool:
    """Whether a ``/``, ``#`` or ``?`` before the ``@`` has ended the host: digits before it would pass for a port."""
    parts = urlsplit(url)
    rest = parts.path + parts.fragment + parts.query.partition("=")[0]
    return parts.scheme in ("redis", "rediss") and "@" in rest and "@" not in parts.netloc


class StateStore:
    """States and fences of one vector space, for the one writer of each shard. ``client``: a connection of one's own.

    Every method raises `StoreError` when Redis does not answer or refuses: nothing is known to be written then,
    and what may have been is told by the fence; `StoreRefusedError` where waiting does not help.
    """

    def __init__(self, config: RedisConfig, space: str, client: redis.Redis | None = None) -> None:
        self._redis = connect(config, WRITE_TIMEOUT_S) if client is None else client
        self._where = where(config.url)
        self._space = space
        self.ttl_s: Final = config.state_ttl_days * 86400
        """How long a state is kept that nothing is written to."""

    def ping(self) -> None:
        """Raises `StoreError` when Redis does not answer."""
        self._call("checking Redis", self._redis.ping)

    def fence(self, kind: Kind, shard: int) -> bytes | None:
        """The fence's bytes; None where there is none: Redis is new, or was emptied."""
        key = fence_key(self._space, kind, shard)
        return self._bytes(self._call("reading a fence", lambda: self._redis.get(key)), "reading a fence")

    def fences(self, shards: Sequence[tuple[Kind, int]]) -> list[bytes | None]:
        """The fences' bytes of several shards, in one call."""
        names = [fence_key(self._space, kind, shard) for kind, shard in shards]
        values = mget_answer(self._call("reading fences", lambda: self._redis.mget(names)), len(names))
        if values is None:
            raise self._nonsense("reading fences")
        return values

    def load(self, kind: Kind, shard: int, expected: bytes, keys: Sequence[str]) -> list[State | None]:
        """States of the keys, None where absent or of another incarnation.

        Raises `FenceMovedError` when the fence is not ``expected``; `CorruptStateError` for a value that is no state.
        """
        states: list[State | None] = []
        incarnation = decode_fence(expected).incarnation
        for start in range(0, len(keys), MAX_KEYS_PER_CALL):
            part = keys[start : start + MAX_KEYS_PER_CALL]
            names = [fence_key(self._space, kind, shard)] + [self._key(kind, shard, key) for key in part]
            values = mget_answer(self._call("reading states", lambda n=names: self._redis.mget(n)), len(names))  # type: ignore[misc]
            if values is None:
                raise self._nonsense("reading states")
            if values[0] != expected:
                raise self._moved(kind, shard)
            states += [self._state(name, value) for name, value in zip(names[1:], values[1:], strict=True)]
        return [state if state is not None and state.incarnation == incarnation else None for state in states]

    def write(
        self,
        kind: Kind,
        shard: int,
        expected: bytes,
        fence: bytes,
        states: Sequence[State],
        gone: Sequence[str] = (),
    ) -> None:
        """Write states and fence together, and delete the states of the keys that are ``gone``.

        Raises `FenceMovedError`, and has written nothing, when the fence is not ``expected``.
        """
        pairs = [(state.key, encode_state(state)) for state in states]
        self._swap(kind, shard, (expected, b""), (fence, b""), [*pairs, *((key, b"") for key in gone)])

    def begin_rebuild(self, kind: Kind, shard: int, claim: bytes) -> None:
        """Claim a shard that has no fence; an older claim ends. Raises `FenceMovedError` when a fence is there."""
        asked = self._call("claiming a shard", lambda: self._redis.get(self._claim_key(kind, shard)))
        older = self._bytes(asked, "claiming a shard")
        self._swap(kind, shard, (b"", older or b""), (b"", claim), ())

    def rebuild(self, kind: Kind, shard: int, claim: bytes, states: Mapping[str, bytes]) -> None:
        """Write encoded states of a claimed shard. Raises `FenceMovedError` when the claim is no longer ours."""
        pairs = list(states.items())
        for start in range(0, len(pairs), MAX_KEYS_PER_CALL):
            self._swap(kind, shard, (b"", claim), (b"", claim), pairs[start : start + MAX_KEYS_PER_CALL])

    def finish_rebuild(self, kind: Kind, shard: int, claim: bytes, fence: bytes) -> None:
        """Set the fence of a claimed shard: from now on its states are read. Raises `FenceMovedError`."""
        self._swap(kind, shard, (b"", claim), (fence, b""), ())

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def _swap(
        self,
        kind: Kind,
        shard: int,
        old: tuple[bytes, bytes],
        new: tuple[bytes, bytes],
        states: Sequence[tuple[str, bytes]],
    ) -> None:
        keys = [fence_key(self._space, kind, shard), self._claim_key(kind, shard)]
        keys += [self._key(kind, shard, key) for key, _ in states]
        values: list[bytes | int] = [*old, *new, self.ttl_s, *(value for _, value in states)]

        def swap() -> object:
            try:
                return self._redis.evalsha(_SCRIPT_SHA, len(keys), *keys, *values)
            except redis.exceptions.NoScriptError:
                # A restarted Redis has forgotten the script; EVAL runs it and teaches it again.
                return self._redis.eval(_SCRIPT, len(keys), *keys, *values)

        answer = self._call("writing states", swap)
        if answer == 0:
            raise self._moved(kind, shard)
        if answer != 1:
            raise self._nonsense("writing states")

    def _call(self, doing: str, call: Callable[[], object]) -> object:
        try:
            return call()
        except (ValueError, TypeError, redis.exceptions.InvalidResponse) as error:
            self._check_refusal(error, doing)
            # Such as a length that is no number: the client's parser trusts what comes. The connection is closed by it.
            raise StoreError(
                f"Redis at {self._where} answers nonsense while {doing} ({type(error).__name__}). Check that redis.url"
                " names a Redis and not something else"
            ) from error
        except redis.exceptions.ResponseError as error:
            self._check_refusal(error, doing)
            raise StoreError(
                f"Redis at {self._where} refuses while {doing}: {error}. Check that it is a primary with memory to "
                "spare (maxmemory, noeviction) and that the user may run scripts"
            ) from error
        except (redis.RedisError, OSError) as error:
            self._check_refusal(error, doing)
            raise StoreError(
                f"Redis at {self._where} does not answer while {doing}: {error}. Check redis.url and that it runs"
            ) from error

    def _check_refusal(self, error: BaseException, doing: str) -> None:
        if why := refusal(error):
            raise StoreRefusedError(f"Redis at {self._where}, while {doing}: {why}") from error

    def _bytes(self, answer: object, doing: str) -> bytes | None:
        if answer is None or isinstance(answer, bytes):
            return answer
        raise self._nonsense(doing)

    def _nonsense(self, doing: str) -> StoreError:
        # What this connection says next may be the answer to an earlier question.
        self._redis.connection_pool.disconnect()
        return StoreError(f"Redis at {self._where} answers nonsense while {doing}. Check what redis.url names")

    def _state(self, name: str, value: bytes | None) -> State | None:
        if value is None:
            return None
        try:
            state = decode_state(value)
        except FormatError as error:
            raise CorruptStateError(f"Redis at {self._where}, key {_masked(name)}: {error}. {_REBUILD}") from error
        if not name.endswith(f"}}:{state.key}"):
            raise CorruptStateError(
                f"Redis at {self._where}, key {_masked(name)}: the value names another key. {_REBUILD}"
            )
        return state

    def _key(self, kind: Kind, shard: int, key: str) -> str:
        return state_key(self._space, kind, shard, key)

    def _claim_key(self, kind: Kind, shard: int) -> str:
        return fence_key(self._space, kind, shard) + ":rebuild"

    def _moved(self, kind: Kind, shard: int) -> FenceMovedError:
        return FenceMovedError(f"{kind} shard {shard}: another writer moved the fence; nothing was written")


_REBUILD: Final = "Delete the shard's fence to have profiles rebuild the shard from features and folds"


class CorruptStateError(MillraceError):
    """A value in Redis is not what was written there: waiting does not help, so this is no `StoreError`."""

    exit_code = StoreError.exit_code


def mget_answer(values: object, n: int) -> list[bytes | None] | None:
    """The values of an MGET, None when it is no answer to ``n`` keys."""
    if not isinstance(values, list) or len(values) != n:
        return None
    return values if all(value is None or isinstance(value, bytes) for value in values) else None


def where(url: str) -> str:
    """Host and port, or the socket's path, of a URL: never its password."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path


def _masked(name: str) -> str:
    """A state's Redis key without the user's or item's id."""
    return name.partition("}")[0] + "}:..."
