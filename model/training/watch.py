"""What can be watched while training: ``metrics.jsonl`` in the run's folder always, TensorBoard events when asked for.

A line of ``metrics.jsonl`` is one step: ``step`` (steps done), ``losses`` and ``weights`` by task, ``learning_rate``
(the body's), ``gradient_norm`` (before clipping), ``tokens`` and ``tokens_per_second``; now and then ``held`` (losses
on calibration rows), ``conflict`` (cosines of the tasks' gradients) and ``valid`` (figures by task on valid rows).
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from model.errors import ModelError

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Report:
    """One optimiser step, seen from outside."""

    step: int
    losses: dict[str, float]
    weights: dict[str, float]
    learning_rate: float
    gradient_norm: float
    tokens: int
    held: dict[str, float] = field(default_factory=dict)
    conflict: dict[str, float] = field(default_factory=dict)
    valid: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Watch:
    """Writes reports down. A run that goes on from step ``done`` writes on there, without what was lost with it."""

    def __init__(self, out: Path, *, done: int, tensorboard: bool) -> None:
        """Raises ModelError when the folder cannot be written or TensorBoard is not there."""
        self._path = out / METRICS
        self._events = _events(out / "tb", done) if tensorboard else None
        try:
            _cut(self._path, done)
            self._lines = self._path.open("a", encoding="utf-8", buffering=1)  # a line at once: it can be followed
        except OSError as error:
            raise ModelError(f"{self._path}: cannot be written ({error}); give another --out") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{self._path} is damaged ({error}); move it away and go on") from error
        self._last_s = time.perf_counter()

    def note(self, report: Report) -> None:
        """Write one step down; its time is what passed since the last one."""
        now_s = time.perf_counter()
        rate = report.tokens / max(now_s - self._last_s, 1e-9)
        self._last_s = now_s
        content = {key: value for key, value in asdict(report).items() if value != {}}
        self._lines.write(json.dumps(content | {"tokens_per_second": round(rate, 1)}) + "\n")
        if self._events is None:
            return
        for group in ("losses", "weights", "held", "conflict"):
            for name, value in getattr(report, group).items():
                self._events.add_scalar(f"{group}/{name.replace(' ', '_')}", value, report.step)
        for task, figures in report.valid.items():
            for name, value in figures.items():
                self._events.add_scalar(f"valid_{name}/{task.replace(' ', '_')}", value, report.step)
        for name in ("learning_rate", "gradient_norm"):
            self._events.add_scalar(name, getattr(report, name), report.step)
        self._events.add_scalar("tokens_per_second", rate, report.step)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        if self._events is not None:
            self._events.close()


def _events(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # lazy: an optional library
    except ImportError as error:
        raise ModelError("training.tensorboard needs that library; pip install 'millrace[train]'") from error
    return SummaryWriter(str(folder), purge_step=done + 1)


def _cut(path: Path, done: int) -> None:
    """Keep the lines of steps up to ``done``: later ones are trained again. A killed run's last line may be torn."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    fresh = path.with_suffix(".part")
    fresh.write_bytes(b"".join(line for line in whole if json.loads(line)["step"] <= done))
    os.replace(fresh, path)
