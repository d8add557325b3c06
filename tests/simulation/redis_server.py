"""A Redis as far as `worker.redis.store` uses one: keys, one script, older copies that may take over, lost answers.

The script is not run but meant: fence and claim are compared, then states, fence and claim set, all or nothing. Times
to live are ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import redis

from worker.redis.store import WRITE_TIMEOUT_S

COPIES_MAX = 12


class SimRedis:
    """The server."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.data: dict[str, bytes] = {}
        self.scripts: set[str] = set()
        self.late: list[tuple[float, list[str], list[Any]]] = []
        self.away_until_s = 0.0
        self._copies: deque[dict[str, bytes]] = deque(maxlen=COPIES_MAX)

    def serve(self) -> None:
        """Scripts that were asked for by clients that have given up since, in time."""
        now = self.clock()
        for due in [late for late in self.late if late[0] <= now]:
            self.late.remove(due)
            self.script(due[1], due[2])

    def expected(self, keys: Sequence[str], values: Sequence[Any]) -> bool:
        """Whether fence and claim are what the writer believes."""
        return all(self.data.get(keys[i], b"") == values[i] for i in range(2))

    def script(self, keys: Sequence[str], values: Sequence[Any]) -> int:
        """`worker.redis.store._SCRIPT`."""
        if not self.expected(keys, values):
            return 0
        for name, value in [*zip(keys[2:], values[5:], strict=True), *zip(keys[:2], values[2:4], strict=True)]:
            if value == b"":
                self.data.pop(name, None)
            else:
                self.data[name] = value
        return 1

    def keep_copy(self) -> None:
        """What a replica has that hears no more."""
        self._copies.append(dict(self.data))

    def flush(self) -> None:
        """All gone."""
        self.data = {}

    def restart(self) -> None:
        """The data stays, scripts do not."""
        self.scripts.clear()

    def fail_over(self, back: float) -> None:
        """An older copy takes over, ``back`` in [0, 1) from the newest to the oldest; what was on its way is gone."""
        self.restart()
        self.late.clear()
        if self._copies:
            self.data = dict(self._copies[-1 - int(back * len(self._copies))])


class SimRedisClient:
    """`redis.Redis` as the store uses it. ``fault`` is asked at every call by its name, ``nap`` before and after.

    away      it did not happen: no connection
    late      nobody knows: it is on its way still, and happens when the server comes to it
    happened  it happened, and nobody knows: its answer is lost
    nonsense  it happened, and the answer is none
    died      it happened, and the process ended with it
    """

    def __init__(
        self,
        server: SimRedis,
        fault: Callable[[str], str | None],
        nap: Callable[[str], None],
        advance: Callable[[float], None],
        died: type[BaseException],
    ) -> None:
        self._server, self._fault, self._nap, self._advance, self._died = server, fault, nap, advance, died
        self.connection_pool = self

    def ping(self) -> object:
        return self._answer("ping", lambda: True)

    def get(self, name: str) -> object:
        return self._answer("get", lambda: self._server.data.get(name))

    def mget(self, names: Sequence[str]) -> object:
        return self._answer("mget", lambda: [self._server.data.get(name) for name in names])

    def evalsha(self, sha: str, n: int, *arguments: Any) -> object:
        if sha not in self._server.scripts:
            self._server.scripts.add(sha)  # for the eval that follows teaches it
            raise redis.exceptions.NoScriptError("NOSCRIPT")
        return self._script(n, arguments)

    def eval(self, _: str, n: int, *arguments: Any) -> object:
        return self._script(n, arguments)

    def disconnect(self) -> None:
        """The pool's."""

    def close(self) -> None:
        """Nothing is held."""

    def _script(self, n: int, arguments: tuple[Any, ...]) -> object:
        keys, values = list(arguments[:n]), list(arguments[n:])
        return self._answer("script", lambda: self._server.script(keys, values), (keys, values))

    def _answer(self, call: str, do: Callable[[], object], script: tuple[list[str], list[Any]] | None = None) -> object:
        self._nap(call)
        server = self._server
        server.serve()
        if server.clock() < server.away_until_s:
            raise redis.exceptions.ConnectionError("away")
        fault = self._fault(call)
        if fault == "away":
            raise redis.exceptions.ConnectionError("away")
        if fault == "late":
            if script is not None:
                server.late.append((server.clock() + 1.5 * WRITE_TIMEOUT_S, *script))
            self._advance(WRITE_TIMEOUT_S)
            raise redis.exceptions.TimeoutError("no answer")
        answer = do()
        if fault == "happened":
            self._advance(WRITE_TIMEOUT_S)
            raise redis.exceptions.TimeoutError("no answer")
        if fault == "died":
            raise self._died
        self._nap(f"{call} answered")
        return 7 if fault == "nonsense" else answer
