"""A disk that can be made full: a small tmpfs in a mount namespace of its own.

A holder process keeps the namespace; whoever is to use the disk is started inside it (`inside`). No mount is seen by
the rest of the machine, none is left over: when the holder and its guests are gone, the kernel drops it. Needs root,
or unprivileged user namespaces.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path

_MOUNT = 'mount -t tmpfs -o size="$2" tmpfs "$1" && echo ready && exec cat'


def refusal(folder: Path) -> str | None:
    """Why no disk of our own can be made on this machine; None where it can."""
    try:
        SmallDisk(folder, 1).close()
    except OSError as error:
        return str(error)
    return None


class SmallDisk:
    """``megabytes`` at ``folder``, for processes started `inside` only. Raises `OSError` where mounting is refused."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._user = [] if os.geteuid() == 0 else ["--user"]
        map_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = ["unshare", *self._user, *map_root, "--mount", "sh", "-c", _MOUNT, "sh"]
        self._holder = subprocess.Popen(
            [*command, str(folder), f"{megabytes}m"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            _, said = self._holder.communicate(timeout=20)
            raise OSError(errno.EPERM, f"a tmpfs of our own is refused: {said.decode(errors='replace').strip()}")

    def inside(self, command: list[str]) -> list[str]:
        """The command, to be run where the disk is. The process keeps its number: nothing is forked."""
        return ["nsenter", *self._user, "--mount", "--target", str(self._holder.pid), *command]

    def seen(self, path: Path) -> Path:
        """A path of the disk as we, outside, can reach it."""
        return Path(f"/proc/{self._holder.pid}/root") / path.relative_to("/")

    def fill(self) -> int:
        """Take all the space that is free; the bytes taken. Writers may race us: we stop when nothing is left."""
        taken = 0
        with self.seen(self.folder / "filler").open("ab") as filler:
            while True:
                found = os.fstatvfs(filler.fileno())
                size = found.f_bavail * found.f_frsize
                if not size:
                    return taken
                with contextlib.suppress(OSError):  # somebody wrote meanwhile: look again
                    os.posix_fallocate(filler.fileno(), taken, size)
                    taken += size

    def free(self) -> None:
        """Give the space back."""
        self.seen(self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Drop the namespace: with its last guest gone, the disk and all on it are gone."""
        self._holder.communicate(timeout=20)
