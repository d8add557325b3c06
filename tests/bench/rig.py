"""What the benchmarks share: a broker and workers in processes of their own, what they say of themselves, a picture."""

from __future__ import annotations

import multiprocessing as mp
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
from prometheus_client import CollectorRegistry

from model.null import NullScorer
from model.scoring import Floats, Prepared
from schemas.topics import INPUTS, TOPICS
from worker.config import Config
from worker.demo.embedded import EmbeddedBroker, EmbeddedRedis, embedded_config
from worker.kafka.admin import admin_client
from worker.scoring.batcher import Batch, Unit
from worker.scoring.device import ThreadedDevice
from worker.scoring.intake import Intake
from worker.scoring.results import Scored
from worker.scoring.score import BatchScorer

START_TIMEOUT_S = 240.0
STALL_S = 120.0
STAGES = ("tokenise", "queue", "fetch", "encode", "heads")
OUT = Path(".millrace/bench")


class Patience:
    """Ends a wait in which nothing moves."""

    def __init__(self, seconds: float = START_TIMEOUT_S) -> None:
        """``seconds``: how long the first may take; later ones `STALL_S`."""
        self._until, self._seen = time.monotonic() + seconds, 0.0

    def see(self, done: float) -> None:
        """So much is done now. Raises RuntimeError when that has been so for too long."""
        if done != self._seen:
            self._until, self._seen = time.monotonic() + STALL_S, done
        elif time.monotonic() > self._until:
            raise RuntimeError(f"nothing has moved for long: {done:.0f} done")


class SleepingScorer(NullScorer):
    """The null model that takes its time and no processor: what is left to measure is everything around it."""

    def __init__(self, batch_ms: float, token_us: float) -> None:
        super().__init__()
        self._batch_s, self._token_s = batch_ms / 1e3, token_us / 1e6

    def encode(self, prepared: Sequence[Prepared]) -> Floats:
        time.sleep(self._batch_s + self._token_s * sum(text.tokens for text in prepared))
        return super().encode(prepared)


class ProbedDevice(ThreadedDevice):
    """Sums, over events, how long each stage took; and of batches, how long one took."""

    seconds = dict.fromkeys(STAGES, 0.0)
    events = batches = 0
    batch_s = 0.0

    def __init__(self, scorer: BatchScorer, *more: Any) -> None:
        super().__init__(scorer, *more)
        self._submitted: list[float] = []

    def submit(self, batch: Batch) -> None:
        self._submitted.append(time.monotonic())
        super().submit(batch)

    def collect(self, timeout_s: float) -> list[Scored]:
        done = super().collect(timeout_s)
        for scored in done:
            submitted, units = self._submitted.pop(0), scored.batch.units
            ProbedDevice.events += len(units)
            ProbedDevice.batches += 1
            ProbedDevice.batch_s += scored.total_s
            waited = sum(submitted - unit.arrived_s for unit in units)
            behind = time.monotonic() - submitted - scored.fetch_s - scored.total_s
            for stage, taken in zip(
                STAGES[1:],
                (
                    waited + len(units) * max(behind, 0.0),
                    len(units) * scored.fetch_s,
                    len(units) * scored.encode_s,
                    len(units) * (scored.total_s - scored.encode_s),
                ),
                strict=True,
            ):
                ProbedDevice.seconds[stage] += taken
        return done


class ProbedIntake(Intake):
    """Tells apart from the queue how long events took to be decoded and tokenised: all of a poll wait for the last."""

    def admit(self, *arguments: Any) -> tuple[list[Unit], list[Any]]:
        start = time.monotonic()
        units, letters = super().admit(*arguments)
        taken = len(units) * (time.monotonic() - start)
        ProbedDevice.seconds["tokenise"] += taken
        ProbedDevice.seconds["queue"] -= taken
        return units, letters


def _work(config: dict[str, Any], sleeping: tuple[float, float] | None, pipe: Any) -> None:
    from worker.scoring import pipeline

    registry, stop, failures = CollectorRegistry(), threading.Event(), list[str]()

    def run() -> None:
        try:
            pipeline.run(msgspec.convert(config, Config), stop, registry)
        except BaseException as error:  # noqa: BLE001 told to whoever asks
            failures.append(repr(error))

    with ExitStack() as stack:
        stack.enter_context(patch("worker.scoring.pipeline.ThreadedDevice", ProbedDevice))
        stack.enter_context(patch("worker.scoring.pipeline.Intake", ProbedIntake))
        if sleeping is not None:
            stack.enter_context(patch("worker.scoring.pipeline.load_model", lambda *_: SleepingScorer(*sleeping)))
        thread = threading.Thread(target=run)
        thread.start()
        while pipe.recv() != "stop":
            pipe.send(_figures(registry, failures))
        stop.set()
        thread.join(60)


def _figures(registry: CollectorRegistry, failures: list[str]) -> dict[str, Any]:
    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"millrace_worker_{name}", labels) or 0.0

    memory = {}
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            name, _, rest = line.partition(":")
            if name in ("Rss", "Pss", "Private_Dirty"):
                memory[name.lower()] = int(rest.split()[0]) / 1024
    return {
        "committed": sum(value("latency_seconds_count", lane=lane) for lane in ("click", "review", "service")),
        "tokens": value("batch_tokens_sum"),
        "busy_s": value("encoder_busy_seconds_total"),
        "cpu_s": time.process_time(),
        "memory_mb": memory,
        "stages": dict(ProbedDevice.seconds),
        "scored": ProbedDevice.events,
        "batches": ProbedDevice.batches,
        "batch_s": ProbedDevice.batch_s,
        "failures": failures,
    }


class WorkerProcess:
    """The real worker in a process of its own."""

    def __init__(self, config: Config, sleeping: tuple[float, float] | None = None) -> None:
        self._pipe, theirs = mp.Pipe()
        arguments = (msgspec.to_builtins(config), sleeping, theirs)
        self._process = mp.get_context("spawn").Process(target=_work, args=arguments, daemon=True)
        self._process.start()

    def ask(self) -> dict[str, Any]:
        """Its figures now. Raises RuntimeError with what it failed with."""
        self._pipe.send("ask")
        if not self._pipe.poll(START_TIMEOUT_S):
            raise RuntimeError("the worker process does not answer")
        found: dict[str, Any] = self._pipe.recv()
        if found["failures"]:
            raise RuntimeError(found["failures"][0])
        return found

    def close(self) -> None:
        """End it well; by force after a minute."""
        self._pipe.send("stop")
        self._process.join(60)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Any) -> None:
    with EmbeddedBroker() as broker, EmbeddedRedis() as redis:
        broker.create_topics(TOPICS)
        pipe.send((broker.bootstrap, redis.url))
        pipe.recv()


@contextmanager
def embedded_servers(**sections: Any) -> Iterator[Config]:
    """Configuration of an embedded broker and Redis that live in a process of their own."""
    here, there = mp.Pipe()
    process = mp.get_context("spawn").Process(target=_serve, args=(there,))
    process.start()
    try:
        bootstrap, url = here.recv()
        # The mock broker answers a fetch only when its wait is over, however soon there is something.
        kafka = {"options": {"fetch.wait.max.ms": 20}}
        yield embedded_config(bootstrap, url, observe={"log_level": "error"}, kafka=kafka, **sections)
    finally:
        here.send("stop")
        process.join(20)


@contextmanager
def real_servers(partitions: int, **sections: Any) -> Iterator[Config]:
    """The same on a real Kafka with so many partitions of each input topic; Redis is embedded."""
    import tempfile

    from confluent_kafka.admin import NewTopic

    from tests.real.conftest import SCRIPT, kafka_answers, server
    from worker.demo.embedded import free_ports
    from worker.kafka.admin import create_topics

    port, controller = free_ports(2)
    bootstrap = f"127.0.0.1:{port}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millrace-bench-")))
        command = [str(SCRIPT), "run", "--port", str(port), "--controller-port", str(controller), "--data", str(folder)]
        stack.enter_context(server(command, folder / "server.out", lambda: kafka_answers(bootstrap)))
        redis = stack.enter_context(EmbeddedRedis())
        config = embedded_config(bootstrap, redis, observe={"log_level": "error"}, **sections)
        kafka = msgspec.structs.replace(config.kafka, embedded=False, fold_shards=8)
        admin = admin_client(kafka)
        for future in admin.create_topics([NewTopic(name, partitions, 1) for name in INPUTS]).values():
            future.result(60)
        create_topics(kafka)
        yield msgspec.structs.replace(config, kafka=kafka)


def picture(name: str, draw: Any) -> str:
    """Draw with matplotlib into ``.millrace/bench/NAME.png``; the path. ``draw`` gets the pyplot module."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    OUT.mkdir(parents=True, exist_ok=True)
    draw(pyplot)
    path = OUT / f"{name}.png"
    pyplot.tight_layout()
    pyplot.savefig(path, dpi=110)
    pyplot.close("all")
    return os.fspath(path)
