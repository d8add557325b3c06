"""Which of a role's processes on this machine we are: a number, ours while we live and the next one's when we are gone.

A restarted worker should take the place of the one that died: under the same transactional id its first call ends
what the dead one left open, which would hold readers back until the broker's time-out. Locks of the operating system
end with their process, so the lowest slot whose lock can be taken is the one to take.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker.errors import ConfigError

SLOTS_MAX: Final = 256


class Slot:
    """A name for the transactional id, as ``name``. Raises `ConfigError` when a configured slot is taken here,
    or the folder of locks is not ours alone.

    Configured (under ``key``), it is that name, which no other process of the role may have, anywhere; else it is host
    name and lowest free number.
    """

    def __init__(self, configured: str, group: str, folder: Path | None = None, key: str = "worker.slot") -> None:
        # One folder a user, so that a foreign one's permissions are in nobody's way.
        self._folder = folder or Path(tempfile.gettempdir()) / f"millrace-{os.getuid()}"
        with suppress(FileExistsError):
            self._folder.mkdir(mode=0o700, parents=True)
        _check_ours(self._folder)
        self._lock: int | None = None
        if configured:
            self.name = configured
            if not self._take(f"{group}-{configured}"):
                raise ConfigError(f"{key} {configured}: another process on this machine has it; give each its own")
            return
        host = socket.gethostname()
        for number in range(SLOTS_MAX):
            self.name = f"{host}-{number}"
            if self._take(f"{group}-{self.name}"):
                return
        raise ConfigError(f"{SLOTS_MAX} of them run on this machine; set {key} to name another")

    def close(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take(self, name: str) -> bool:
        path = self._folder / (re.sub(r"[^\w.-]", "_", name) + ".lock")
        try:
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; a file of ours is wanted there, to lock") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        return True


def _check_ours(folder: Path) -> None:
    """The name can be guessed, and anybody may have made something of it first. Raises `ConfigError`."""
    found = folder.lstat()
    mode = stat.S_IMODE(found.st_mode)
    # A folder above may have put its setgid bit on ours.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or mode & 0o777 != 0o700:
        raise ConfigError(
            f"{folder}: wanted is a folder of user {os.getuid()} with mode 700, it is a"
            f" {'folder' if stat.S_ISDIR(found.st_mode) else 'link or file'} of user {found.st_uid} with mode {mode:o}."
            " Remove it, or name another place for temporary files in TMPDIR"
        )
