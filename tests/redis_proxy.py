"""A way to Redis that fails on purpose: answers lost, late, cut off, or replaced, by a seeded choice.

Each connection is a thread that passes whole requests on and decides, answer by answer, what the client gets. What is
lost is the answer, never the request: so the client cannot know what was done, which is the hard case.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections import Counter
from typing import Self
from urllib.parse import urlsplit

FAULTS = ("cut", "silent", "late", "nonsense", "refuse", "lie")
LATE_S = 0.05
NONSENSE = (b":abc\r\n", b"$5\r\nab", b"*1\r\n:5\r\n", b"\x00\r\n", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n")
REFUSALS = (b"-LOADING loading\r\n", b"-READONLY replica\r\n", b"-OOM no memory\r\n", b"-BUSY script\r\n")
LIES = (b":1\r\n", b":0\r\n")
"""Whether a script wrote, which only the fence can tell."""


class RedisProxy:
    """Listens while the context is open; ``share`` of the answers go wrong."""

    def __init__(self, url: str, seed: int, share: float) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._random, self.share = random.Random(seed), share
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server, contextlib.suppress(OSError):
            client.settimeout(0.1)
            while not self._stop.is_set():
                try:
                    asked = client.recv(1 << 20)
                except TimeoutError:
                    continue
                if not asked:
                    return
                server.sendall(asked)
                if not self._answer(client, server):
                    return

    def _answer(self, client: socket.socket, server: socket.socket) -> bool:
        """Pass on what Redis says, until the client asks again; False when the connection ends."""
        server.settimeout(0.02)
        said = b""
        while not self._stop.is_set():
            try:
                part = server.recv(1 << 20)
            except TimeoutError:
                if said or _more(client):
                    break
                continue
            if not part:
                return False
            said += part
        if not said:
            return True  # the rest of a long request first
        with self._lock:
            fault = self._random.choice(FAULTS) if self._random.random() < self.share else ""
            self.counts[fault] += 1
            odd = {"nonsense": NONSENSE, "refuse": REFUSALS, "lie": LIES}.get(fault)
            answer = self._random.choice(odd) if odd else said
        if fault == "cut":
            return False
        if fault == "silent":
            self._wait_for_end(client)
            return False
        if fault == "late":
            self._stop.wait(LATE_S)
        client.sendall(answer)
        return True

    def _wait_for_end(self, client: socket.socket) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                if not client.recv(1 << 16):
                    return


def _more(client: socket.socket) -> bool:
    """Whether the client has sent more."""
    client.setblocking(False)
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        client.settimeout(0.1)
