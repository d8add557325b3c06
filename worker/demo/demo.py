"""``millrace demo``: a simulated shop through worker, profiles and alerts, with an embedded broker and Redis.

Event time runs faster than the clock, so that windows of minutes fill while one watches; events are dated back, so
that none lies ahead of the clock. A bounded demo spreads its events over `SPAN_MINUTES` of event time (more where it
lasts longer); an endless one begins `BACKDATED_DAYS` ago and runs `SPEED` times as fast as the clock until it has
caught up with it, days later, and then sends no faster than the clock allows.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from schemas.topics import INPUTS, OPINIONS, SCORES_CTR, SCORES_INTENT, SCORES_SENTIMENT, TOPICS
from worker.config import Config, KafkaConfig
from worker.demo.catalogue import Catalogue
from worker.demo.embedded import EmbeddedBroker, EmbeddedRedis, embedded_config
from worker.demo.meter import Meter
from worker.demo.roles import RoleError, Roles, Scraper
from worker.demo.shop import CLICK_RATE, Shop, Surge
from worker.demo.traffic import Traffic
from worker.demo.view import View
from worker.errors import InputError, MillraceError

RATE: Final = 60.0
"""Events a second that two cores keep up with, the starter model and all roles of the demo on them."""
SEED: Final = 7
WARM_UP: Final = 12
"""Events sent while the roles start, at least one of every stream; they are counted but not timed."""
SPEED: Final = 15
SPAN_MINUTES: Final = 40
BACKDATED_DAYS: Final = 30
SURGE: Final = (0.5, 0.8)
"""When the complaints come in a bounded demo, as shares of its event time."""
SURGE_MINUTES: Final = (12, 22, 50)
"""The same in an endless one: from minute, to minute, again every so many minutes."""
START_TIMEOUT_S: Final = 120.0
STALL_TIMEOUT_S: Final = 60.0
"""A demo that has seen no score for so long while some are due has failed."""
TURN_S: Final = 0.02
_MINUTE_MS: Final = 60_000


class Plan(msgspec.Struct, frozen=True):
    """Event times of a demo: where they start, how far apart events are, when complaints come."""

    start_ms: int
    spacing_ms: float
    surge: Surge


def plan(events: int | None, rate: float, now_ms: int) -> Plan:
    """Event times for ``events`` (None: endless) sent at ``rate`` a second from now on. Pure."""
    if events is None:
        start_ms = now_ms - BACKDATED_DAYS * 24 * 60 * _MINUTE_MS
        begins, ends, every = (start_ms + minute * _MINUTE_MS for minute in SURGE_MINUTES)
        return Plan(start_ms, SPEED * 1000 / rate, Surge(begins_ms=begins, ends_ms=ends, every_ms=every - start_ms))
    lasts_ms = events / rate * 1000
    span_ms = max(SPAN_MINUTES * _MINUTE_MS, lasts_ms)
    start_ms = now_ms - round(span_ms - lasts_ms)
    begins, ends = (start_ms + round(share * span_ms) for share in SURGE)
    return Plan(start_ms, span_ms / events, Surge(begins_ms=begins, ends_ms=ends))


def run_demo(
    config: Config,
    *,
    events: int | None = None,
    rate: float | None = None,
    exit_: bool = False,
    json_: bool = False,
    seed: int = SEED,
    picture: Path | None = None,
) -> int:
    """Run the demo until its end or Ctrl-C. ``config`` says everything but where Kafka and Redis are.

    With ``exit_`` it ends when each of ``events`` has its score and prints a summary, as one JSON line with ``json_``.
    ``picture`` is a file for the last screen, as SVG.
    Raises `MillraceError`, also when such a demo is interrupted; the roles' logs are kept then.
    """
    if exit_ and events is None:
        raise InputError("--exit needs --events: how many events should the demo end after?")
    if picture is not None:
        try:
            picture.touch()  # now, not when all is over
        except OSError as error:
            raise InputError(f"--picture {picture}: {error.strerror}") from error
    rate = rate or RATE
    with ExitStack() as stack:
        stack.enter_context(_interruptible())
        folder = stack.enter_context(_folder())
        broker = stack.enter_context(EmbeddedBroker())
        redis = stack.enter_context(EmbeddedRedis())
        config = _demo_config(config, broker, redis, folder)
        broker.create_topics(config.kafka.topic(name) for name in TOPICS)
        times = plan(events, rate, time.time_ns() // 1_000_000)
        catalogue = Catalogue.load()
        shop = Shop(seed, catalogue, times.surge)
        meter = Meter()
        traffic = Traffic(config.kafka, shop.events(times.start_ms, times.spacing_ms), meter)
        stack.callback(traffic.close)
        roles = stack.enter_context(Roles(config, folder))
        scraper = stack.enter_context(Scraper(roles.addresses, redis.url))
        view = stack.enter_context(View(meter, scraper, catalogue, config.model.artifact, quiet=json_, picture=picture))
        demo = _Demo(traffic, roles, scraper, meter, view, events, rate)
        try:
            demo.start()
            demo.run(stay=not exit_)
        except KeyboardInterrupt:
            demo.interrupted = True
        demo.finish()
        if exit_ and demo.interrupted:
            raise MillraceError(f"interrupted with {meter.waiting} events sent and not scored; logs: {folder}")
    click.echo(msgspec.json.encode(summary(meter)).decode() if json_ else _told(meter, demo.interrupted))
    return 0


class _Demo:
    """One run: start, run, finish."""

    def __init__(
        self,
        traffic: Traffic,
        roles: Roles,
        scraper: Scraper,
        meter: Meter,
        view: View,
        events: int | None,
        rate: float,
    ) -> None:
        self._traffic, self._roles, self._scraper, self._meter, self._view = traffic, roles, scraper, meter, view
        self._events, self._rate = events, rate
        self.interrupted = False
        self._written, self._moved_s = 0, time.monotonic()

    def start(self) -> None:
        """Wait until every role is up and the first events have their scores."""
        first = min(WARM_UP, self._events or WARM_UP)
        self._traffic.send(first, timed=False)
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._meter.waiting or len(self._scraper.ready) < len(self._roles.pids):
            if time.monotonic() > deadline:
                missing = set(self._roles.pids) - self._scraper.ready
                what = f"{', '.join(sorted(missing))} not up" if missing else "the first events have no scores"
                raise RoleError(f"{what} after {START_TIMEOUT_S:.0f} s; logs: {self._roles.folder}")
            missing = set(self._roles.pids) - self._scraper.ready
            self._turn(f"starting {', '.join(sorted(missing)) or 'to score'}")

    def run(self, *, stay: bool) -> None:
        """Send at the given rate, read what comes; to the end of the events, or for ever."""
        begin_s, sent = time.monotonic(), self._traffic.sent
        while self._events is None or self._traffic.sent < self._events:
            due = sent + int((time.monotonic() - begin_s) * self._rate) - self._traffic.sent
            if self._events is not None:
                due = min(due, self._events - self._traffic.sent)
            # An endless demo that has caught up with the clock goes no faster than it.
            if due > 0 and self._meter.event_time_ms <= time.time_ns() // 1_000_000:
                self._traffic.send(due)
            self._turn("running")
            self._check_progress("scores", idle=self._meter.waiting == 0)
        self._wait_for(lambda: self._meter.waiting == 0, "scores")
        self._wait_for(self._alerts_have_counted, "opinions counted by alerts")
        while stay:
            self._turn("shop closed")

    def finish(self) -> None:
        """Stop the roles in good order and read what they wrote last."""
        self._view.close()
        self._roles.stop()
        self._traffic.collect_rest()

    def _turn(self, phase: str) -> None:
        self._roles.check()
        self._traffic.collect(TURN_S)
        self._view.refresh(phase)

    def _wait_for(self, done: Callable[[], bool], what: str) -> None:
        """Until ``done``. Raises `RoleError` when nothing at all was written for `STALL_TIMEOUT_S`."""
        while not done():
            self._turn("finishing")
            self._check_progress(what, idle=False)

    def _check_progress(self, what: str, *, idle: bool) -> None:
        """Raises `RoleError` when something is due (not ``idle``) and nothing was written for `STALL_TIMEOUT_S`."""
        now, written = time.monotonic(), self._meter.outputs.total()
        if idle or written != self._written:
            self._written, self._moved_s = written, now
        elif now - self._moved_s > STALL_TIMEOUT_S:
            raise RoleError(
                f"waited {STALL_TIMEOUT_S:.0f} s in vain for {what}, {self._meter.waiting} events have none;"
                f" logs: {self._roles.folder}"
            )

    def _alerts_have_counted(self) -> bool:
        samples = self._scraper.samples("alerts")
        if _COUNTED not in samples:
            return False
        # Copies and the many opinions of one author are set apart: seen, and not counted.
        skipped = sum(n for name, n in samples.items() if name.startswith(_SKIPPED))
        return samples[_COUNTED] + skipped >= self._meter.outputs[OPINIONS]


_COUNTED: Final = "millrace_alerts_opinions_total"
_SKIPPED: Final = "millrace_alerts_skipped_total"


def summary(meter: Meter) -> dict[str, Any]:
    """What a bounded demo prints last."""
    scores = (SCORES_CTR, SCORES_SENTIMENT, SCORES_INTENT, OPINIONS)
    return {
        "events_in": {topic: meter.events_in[topic] for topic in INPUTS},
        "scores_out": {topic: meter.outputs[topic] for topic in scores},
        "dead_letters": meter.dead_letters,
        "alerts": len(meter.opened),
        "events_per_second": meter.events_per_second(),
        "latency_ms": meter.latency_ms(),
    }


def _told(meter: Meter, interrupted: bool) -> str:
    found = summary(meter)
    latency = found["latency_ms"]
    return (
        f"{'Stopped' if interrupted else 'Done'}: {sum(found['events_in'].values())} events in,"
        f" {sum(n for topic, n in found['scores_out'].items() if topic != OPINIONS)} scores out,"
        f" {found['dead_letters']} dead letters, {found['alerts']} alerts;"
        f" {found['events_per_second']} events/s, latency p50 {latency['p50']} ms, p99 {latency['p99']} ms"
    )


def _demo_config(config: Config, broker: EmbeddedBroker, redis: EmbeddedRedis, folder: Path) -> Config:
    return embedded_config(
        broker,
        redis,
        # How a real cluster is reached, and what its topics are called, does not concern the embedded one.
        base=msgspec.structs.replace(config, kafka=KafkaConfig()),
        # The embedded broker answers an empty fetch only after this time.
        kafka={"options": {"fetch.wait.max.ms": 20}},
        model={"click_base_rate": config.model.click_base_rate or CLICK_RATE},
        alerts={"data_dir": str(folder / "alerts")},
        observe={"log_format": "json"},
    )


@contextmanager
def _folder() -> Iterator[Path]:
    """For the roles' configurations and logs; it stays when something failed, because the error points to it."""
    folder = Path(tempfile.mkdtemp(prefix="millrace-demo-"))
    try:
        yield folder
    except Exception:
        raise
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, and the terminal's closing, end the demo as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # SIGINT by name too: a process started in the background may have inherited it as ignored.
    endings = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in endings}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
