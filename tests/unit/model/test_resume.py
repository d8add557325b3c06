"""A training process that is really killed, and goes on to the artifact that it would have made."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model.artifact import WEIGHTS
from model.training.trainer import Batches, Trainer
from model.training.watch import METRICS, Report
from tests.toy_training import make_workshop, run, write_recipe

ROOT = Path(__file__).parents[3]
STEPS_BEFORE_KILL = 9
# A checkpoint at every step, and steps slow enough to be hit in the middle of the run.
CHILD = """
import sys, time
from pathlib import Path
import torch
from model.training import train as training
from model.training.trainer import Trainer
from tests.toy_training import run
torch.set_num_threads(1)
training.CHECKPOINT_SECONDS = 0
learn = Trainer.learn
def slowly(self, batches, step):
    time.sleep(0.03)
    return learn(self, batches, step)
Trainer.learn = slowly
run(Path(sys.argv[1]), Path(sys.argv[2]), recipe=sys.argv[3])
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def train_and_kill(workshop: Path, out: Path, recipe: str) -> None:
    """Start a training process and kill it once it has written down some steps."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(workshop), str(out), recipe]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        metrics = out / METRICS
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < STEPS_BEFORE_KILL:
            assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    watched = {"tensorboard": True, "valid_every": 4}  # so that both runs ask the valid rows, at the same steps
    write_recipe(
        workshop,
        "all.yaml",
        weighting="famo",
        experts="mmoe",
        experts_width=4,
        accumulate=2,
        batch_tokens=100,
        **watched,
    )
    train_and_kill(workshop, tmp_path / "killed", "all.yaml")
    assert not (tmp_path / "killed" / "artifact").exists()
    steps_seen = (tmp_path / "killed" / METRICS).read_bytes().count(b"\n")
    assert steps_seen >= STEPS_BEFORE_KILL
    resumed = run(workshop, tmp_path / "killed", resume=True, recipe="all.yaml")
    whole = run(workshop, tmp_path / "whole", recipe="all.yaml")
    assert sha256(resumed) == sha256(whole)
    lines = [(tmp_path / name / METRICS).read_text().splitlines() for name in ("killed", "whole")]
    assert len(lines[0]) == len(lines[1]) > steps_seen


def test_ctrl_c_finishes_the_step_and_writes_it_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop, learn = make_workshop(tmp_path), Trainer.learn
    before = signal.signal(
        signal.SIGINT, handler := signal.default_int_handler
    )  # ignored where tests are a background job

    def stopped(self: Trainer, batches: Batches, step: int) -> Report:
        if step == STEPS_BEFORE_KILL:
            signal.raise_signal(signal.SIGINT)
        return learn(self, batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "learn", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(workshop, tmp_path / "stopped")
    assert (tmp_path / "stopped" / METRICS).read_bytes().count(b"\n") == STEPS_BEFORE_KILL + 1
    assert signal.signal(signal.SIGINT, before) is handler
    resumed = run(workshop, tmp_path / "stopped", resume=True)
    assert (tmp_path / "stopped" / METRICS).read_bytes().count(b"\n") > STEPS_BEFORE_KILL + 1
    assert sha256(resumed) == sha256(run(workshop, tmp_path / "whole"))
