"""A network that can be made bad: one TCP proxy per server, all in a process of their own.

The process (`python -m tests.chaos.proxy SEED`) takes one JSON command a line on its standard input, answers each with
one line, and ends with its input: nothing is left over when the tests are killed. What goes wrong is drawn from the
seed, the route, the connection's number and its direction.

Nothing is ever dropped from the middle of a stream, for TCP does not do that: what is lost is repeated later (`hold_*`,
then released) or the connection is reset (`loss`, `reset`). Bounds: `PENDING_CHUNKS` chunks of `CHUNK_BYTES` wait per
connection and direction; beyond that the proxy stops reading, as a full socket would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import select
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

CHUNK_BYTES: Final = 64 * 1024
PENDING_CHUNKS: Final = 64
CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 20.0

Direction = Literal["up", "down"]


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """How a route is. ``up`` is from client to server. ``loss`` is the chance that a chunk resets its connection."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    bytes_per_s: float | None = None
    hold_up: bool = False
    hold_down: bool = False
    refuse: bool = False


FAIR: Final = Weather()


class Route:
    """One listening port, and the server behind it."""

    def __init__(self, name: str, port: int, upstream: int, seed: int) -> None:
        self.name, self.port, self.upstream, self.seed = name, port, upstream, seed
        self.weather, self.resets, self.accepted = FAIR, 0, 0
        self.bytes: dict[Direction, int] = {"up": 0, "down": 0}
        self.changed = asyncio.Condition()
        self._writers: set[asyncio.StreamWriter] = set()
        self._free_at: dict[Direction, float] = {"up": 0.0, "down": 0.0}
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Accept connections from now on."""
        await asyncio.start_server(self._accepted, "127.0.0.1", self.port)

    async def set(self, weather: Weather) -> None:
        """Change the weather for all connections, old and new."""
        self.weather = weather
        if weather.refuse:
            self.reset()
        async with self.changed:
            self.changed.notify_all()

    def reset(self) -> int:
        """Reset every open connection; how many there were."""
        # Taken out at once: their tasks end later, and until then another call would count them again.
        cut, self._writers = self._writers, set()
        for writer in cut:
            _reset(writer)
        self.resets += len(cut)
        return len(cut)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        if self.weather.refuse:
            _reset(writer)
            return
        try:
            opening = asyncio.open_connection("127.0.0.1", self.upstream)
            up_reader, up_writer = await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError):
            _reset(writer)
            return
        pair = (writer, up_writer)
        self._writers.update(pair)
        try:
            await asyncio.gather(self._carry(number, "up", reader, pair), self._carry(number, "down", up_reader, pair))
        finally:
            self._writers.difference_update(pair)

    async def _carry(
        self,
        number: int,
        direction: Direction,
        reader: asyncio.StreamReader,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        """Carry one direction of one connection until it ends; then both directions end."""
        pending: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PENDING_CHUNKS)
        chance = random.Random(f"{self.seed}:{self.name}:{number}:{direction}")
        feeding = asyncio.create_task(self._feed(reader, pending, chance))
        try:
            while True:
                due, data = await pending.get()
                if not data:
                    break
                await self._wait(direction, due, len(data))
                if self.weather.loss and chance.random() < self.weather.loss:
                    self.resets += 1
                    for writer in pair:
                        _reset(writer)
                    break
                to = pair[1] if direction == "up" else pair[0]
                to.write(data)
                await to.drain()
                self.bytes[direction] += len(data)
        except OSError:
            pass  # one end is gone: the other is told below
        finally:
            feeding.cancel()
            for writer in pair:
                writer.close()

    async def _feed(
        self, reader: asyncio.StreamReader, pending: asyncio.Queue[tuple[float, bytes]], chance: random.Random
    ) -> None:
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            try:
                data = await reader.read(CHUNK_BYTES)
            except OSError:
                data = b""
            weather = self.weather
            delay_s = (weather.delay_ms + weather.jitter_ms * chance.random()) / 1000
            await pending.put((loop.time() + delay_s, data))

    async def _wait(self, direction: Direction, due: float, size: int) -> None:
        """Until the chunk may go on: its delay is over, the route is not held, and its share of bandwidth is there."""
        loop = asyncio.get_running_loop()
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        async with self.changed:
            await self.changed.wait_for(lambda: not self._held(direction))
        if rate := self.weather.bytes_per_s:
            self._free_at[direction] = max(self._free_at[direction], loop.time()) + size / rate
            await asyncio.sleep(self._free_at[direction] - loop.time())

    def _held(self, direction: Direction) -> bool:
        return self.weather.hold_up if direction == "up" else self.weather.hold_down


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a lost one ends: with RST, not politely."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def serve(seed: int) -> None:
    """Serve commands until standard input ends."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    routes: dict[str, Route] = {}
    while line := await commands.readline():
        command = json.loads(line)
        name, answer = command["route"], {}
        match command["do"]:
            case "add":
                routes[name] = Route(name, command["port"], command["upstream"], seed)
                await routes[name].listen()
            case "set":
                await routes[name].set(msgspec.convert(command["weather"], Weather))
            case "upstream":
                routes[name].upstream = command["upstream"]
            case "reset":
                answer = {"reset": routes[name].reset()}
            case "stats":
                route = routes[name]
                answer = {"accepted": route.accepted, "resets": route.resets, **route.bytes}
        print(json.dumps(answer), flush=True)


class Proxy:
    """The proxy's process, and what can be asked of it, by any thread."""

    def __init__(self, log: Path, seed: int = 0) -> None:
        command = [sys.executable, "-m", "tests.chaos.proxy", str(seed)]
        with log.open("wb") as err:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                start_new_session=True,
                cwd=Path(__file__).resolve().parents[2],
            )
        self._log = log
        self._lock = threading.Lock()

    def add(self, route: str, port: int, upstream: int) -> None:
        """Listen on a port of 127.0.0.1 for the server on another one. It need not be there yet."""
        self._ask(route, "add", port=port, upstream=upstream)

    def set(self, route: str, **weather: Any) -> None:
        """Set a route's whole weather: fields of `Weather`; what is not named is fair."""
        self._ask(route, "set", weather=msgspec.to_builtins(Weather(**weather)))

    def redirect(self, route: str, upstream: int) -> None:
        """Send new connections to another server, and reset the old ones."""
        self._ask(route, "upstream", upstream=upstream)
        self.reset(route)

    def reset(self, route: str) -> int:
        """Reset every open connection of a route; how many sockets were cut."""
        return int(self._ask(route, "reset")["reset"])

    def stats(self, route: str) -> dict[str, int]:
        """Connections accepted, resets, bytes up and down."""
        return self._ask(route, "stats")

    def close(self) -> None:
        """End the process, and with it every connection."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, route: str, do: str, **more: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = b""
        with self._lock, contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps({"route": route, "do": do, **more}).encode() + b"\n")
            self._process.stdin.flush()
            if select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)[0]:
                line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the proxy does not answer when asked to {do} {route}: {said}")
        return dict(json.loads(line))


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
