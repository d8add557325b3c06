"""The demo on the screen: rates, latencies, lanes, samples, opinion and features, from 80x24 up.

Where the output is no terminal it is one plain line every few seconds. Texts are shown here, and only here, because
the simulated shop has made them up.
"""

from __future__ import annotations

import re
import time
from collections import deque
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from schemas.topics import (
    EVENTS_CLICK,
    EVENTS_REVIEW,
    EVENTS_SERVICE,
    FEATURES_USER,
    SCORES_CTR,
    SCORES_INTENT,
    SCORES_SENTIMENT,
)
from worker.demo.catalogue import Catalogue
from worker.demo.meter import SUBJECT_MINUTES, Meter, Sample
from worker.demo.roles import Scraper
from worker.demo.view_text import sample_row, spark

REFRESH_S: Final = 0.25
SAMPLE_EVERY_S: Final = 1.2
PLAIN_EVERY_S: Final = 5.0
PICTURE_SIZE: Final = (112, 36)
SHOWN_TERMS: Final = 3
STREAMS: Final = (
    ("clicks", "click", EVENTS_CLICK, SCORES_CTR),
    ("reviews", "review", EVENTS_REVIEW, SCORES_SENTIMENT),
    ("service", "service", EVENTS_SERVICE, SCORES_INTENT),
)
# Lines that are there whatever the height: head, streams, machine, rules, features.
_FIXED_LINES: Final = 11


class View:
    """Shows what meter and scraper know. ``quiet`` keeps standard output free: all goes to standard error.

    ``picture``: a file into which the last screen goes when the view is closed, as SVG.
    """

    def __init__(
        self,
        meter: Meter,
        scraper: Scraper,
        catalogue: Catalogue,
        artifact: str,
        *,
        quiet: bool,
        picture: Path | None = None,
    ) -> None:
        self._meter, self._scraper = meter, scraper
        self._artifact = Path(artifact).name
        self._titles = {item.item_id: item.titles["zh"] for item in catalogue.items}
        self._english = {item.category: item.category_en for item in catalogue.items}
        self._console = Console(stderr=quiet)
        self._picture, self._phase = picture, "starting"
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, screen=True, auto_refresh=False, vertical_overflow="crop")
        self._shown: dict[str, deque[Sample]] = {topic: deque(maxlen=6) for _, _, _, topic in STREAMS}
        self._began_s = self._refreshed_s = self._sampled_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the screen back, and draw the picture."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._picture is not None:
            width, height = PICTURE_SIZE
            paper = Console(record=True, file=StringIO(), width=width, force_terminal=True, color_system="truecolor")
            paper.print(self.screen(self._phase, time.monotonic(), height))
            drawing = paper.export_svg(title="millrace demo", code_format=_SVG)
            self._picture.write_text(_SQUEEZED.sub("", drawing), encoding="utf-8")
            self._picture = None

    def refresh(self, phase: str) -> None:
        """Draw what is known now; cheap when the last drawing is recent."""
        now = time.monotonic()
        if now - self._refreshed_s < (PLAIN_EVERY_S if self._live is None else REFRESH_S):
            return
        self._refreshed_s = now
        self._phase = phase
        if now - self._sampled_s > SAMPLE_EVERY_S:
            self._sampled_s = now
            self._take_samples()
        if self._live is None:
            self._console.print(self.line(phase, now), highlight=False, soft_wrap=True)
            return
        size = self._console.size
        self._live.update(self.screen(phase, now, size.height), refresh=True)

    def line(self, phase: str, now: float) -> str:
        """All in one line, for logs and pipes."""
        meter, latency = self._meter, self._meter.latency_ms()
        scored = sum(meter.outputs[scores] for _, _, _, scores in STREAMS)
        rate = sum(meter.rate(events, now) for _, _, events, _ in STREAMS)
        return (
            f"{now - self._began_s:4.0f} s  {phase}: {meter.events_in.total()} events ({rate:.0f}/s), {scored} scores;"
            f" {meter.dead_letters} dead, {meter.waiting} waiting; latency p50 {latency['p50']:.0f} p99"
            f" {latency['p99']:.0f} ms; encoder busy {_percent(self._busy())}, cache hits {_percent(self._hits())};"
            f" {len(meter.opened)} alerts"
        )

    def screen(self, phase: str, now: float, height: int) -> RenderableType:
        """The whole screen, for a terminal of so many lines."""
        room = max(6, height - _FIXED_LINES)
        opinions = max(2, room * 2 // 5)
        samples = max(1, (room - opinions) // len(STREAMS))
        return Group(
            self._head(phase, now),
            self._streams(now),
            self._machine(),
            Rule("latest scores", style="dim", align="left"),
            self._samples(samples),
            Rule(self._opinion_title(), style="dim", align="left"),
            self._opinion(opinions),
            Rule("user state", style="dim", align="left"),
            self._features(now),
        )

    def _head(self, phase: str, now: float) -> RenderableType:
        clock = datetime.fromtimestamp(self._meter.event_time_ms / 1000, UTC).strftime("%d %b %H:%M:%S")
        head = Table.grid(expand=True)
        head.add_column(no_wrap=True)
        head.add_column(justify="right", no_wrap=True)
        head.add_row(
            Text.assemble(("Millrace ", "bold cyan"), "three streams, one encoder pass, three answers"),
            Text(f"{phase}, {now - self._began_s:.0f} s", "bold"),
        )
        head.add_row(
            Text(f"shop > Kafka > worker, profiles, alerts   model {self._artifact}", "dim"),
            Text(f"shop time {clock}", "dim"),
        )
        return head

    def _streams(self, now: float) -> RenderableType:
        table = Table(box=None, expand=True, padding=(0, 1), header_style="dim", pad_edge=False)
        table.add_column("stream", no_wrap=True)
        # "agree": how often the model found what the shop meant; for clicks how well it told them from the rest.
        # "queued": tokens waiting for the encoder.
        for name in ("in/s", "out/s", "scores", "p50 ms", "p99 ms", "queued", "agree"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, lane, events, scores in STREAMS:
            latency = self._meter.latency_ms(scores)
            queue = self._scraper.value("worker", f"millrace_worker_queue_tokens{{lane={lane}}}")
            table.add_row(
                Text(f"{name} > {scores}", "bold"),
                f"{self._meter.rate(events, now):.1f}",
                f"{self._meter.rate(scores, now):.1f}",
                str(self._meter.outputs[scores]),
                f"{latency['p50']:.0f}",
                f"{latency['p99']:.0f}",
                "-" if queue is None else f"{queue:.0f}",
                self._agreement(scores),
            )
        return table

    def _agreement(self, scores: str) -> str:
        if scores == SCORES_CTR:
            found = self._meter.click_auc()
            return "AUC -" if found is None else f"AUC {found:.2f}"
        agreed = self._meter.agreement[scores]
        return _percent(sum(agreed) / len(agreed) if agreed else None)

    def _machine(self) -> RenderableType:
        scraper, meter = self._scraper, self._meter
        batches = scraper.per_second("worker", "millrace_worker_encode_seconds_count")
        folds = [scraper.per_second("profiles", f"millrace_profiles_folds_total{{kind={kind}}}") for kind in _KINDS]
        facts = (
            ("encoder", _percent(self._busy())),
            ("cache", _percent(self._hits())),
            ("states known", _percent(self._known())),
            ("folds/s", _number(sum(fold or 0.0 for fold in folds) if any(folds) else None)),
            ("Redis keys", "-" if scraper.redis_keys is None else str(scraper.redis_keys)),
            ("dead", str(meter.dead_letters)),
            # Cut off where the terminal is narrow.
            ("batches/s", _number(batches)),
            ("waiting", str(meter.waiting)),
        )
        text = Text(no_wrap=True, overflow="ellipsis")
        for name, value in facts:
            text.append(f"{name} ", "dim").append(value, "bold").append("  ")
        return text

    def _samples(self, count: int) -> RenderableType:
        table = Table.grid(expand=True, padding=(0, 1))
        table.add_column(width=25, no_wrap=True, overflow="ellipsis")
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for _, _, _, topic in STREAMS:
            rows = list(self._shown[topic])[-count:]
            for sample in rows:
                table.add_row(*sample_row(sample))
            for _ in range(count - len(rows)):
                table.add_row("", "")
        return table

    def _opinion_title(self) -> str:
        open_now = sum(alert.status != "resolved" for alert in self._meter.alerts.values())
        return f"negative opinion, last {SUBJECT_MINUTES} minutes of shop time   alerts: {open_now} open," + (
            f" {len(self._meter.opened)} so far"
        )

    def _opinion(self, count: int) -> RenderableType:
        table = Table.grid(expand=True, padding=(0, 1))
        table.add_column(width=20, no_wrap=True)
        table.add_column(width=5, justify="right")
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column(no_wrap=True)
        flags = {alert.subject: alert for alert in self._meter.alerts.values()}
        rows = self._meter.negative_shares()
        # What has an alert stays in sight, however many subjects are worse by chance.
        rows.sort(key=lambda row: flags[row[0]].status != "resolved" if row[0] in flags else False, reverse=True)
        for subject, share, opinions in rows[:count]:
            alert = flags.get(subject)
            colour = "red" if share > 0.4 else "yellow" if share > 0.2 else "green"
            flag, why = Text(""), ""
            if alert is not None:
                if alert.status != "resolved" and alert.evidence is not None:
                    why = "  " + ", ".join(term.term for term in alert.evidence.terms[:SHOWN_TERMS])
                style = "dim" if alert.status == "resolved" else "bold white on red"
                flag = Text(f" {alert.severity} {alert.status} ", style)
            bar = Text("█" * round(share * 20), colour).append("░" * (20 - round(share * 20)), "dim")
            table.add_row(bar, f"{share:.0%}", f"{self._named(subject)}  ({opinions} reviews){why}", flag)
        for _ in range(count - len(rows)):
            table.add_row("", "", "", "")
        return table

    def _features(self, now: float) -> RenderableType:
        state, rate = self._meter.state, self._meter.rate(FEATURES_USER, now)
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append("features.user ", "bold").append(f"{rate:.1f} updates/s", "dim")
        if state is not None:
            shown, clicked, purchased = state.counts[-1]
            text.append(f"   {state.key}: shown {shown:.0f}, clicked {clicked:.0f}, bought {purchased:.0f}  liked ")
            text.append(spark(state.sums[1, -1] / (state.weights[1, -1] + 1)), "cyan")
        return text

    def _take_samples(self) -> None:
        for _, _, _, topic in STREAMS:
            # Pages and searches say more than the clicks that follow them.
            fresh = [s for s in self._meter.samples[topic] if topic != SCORES_CTR or s.sent.meant in _SHOWN_ACTIONS]
            if fresh and fresh[-1] not in self._shown[topic]:
                self._shown[topic].append(fresh[-1])

    def _busy(self) -> float | None:
        return self._scraper.per_second("worker", "millrace_worker_encoder_busy_seconds_total")

    def _hits(self) -> float | None:
        hits = self._scraper.value("worker", "millrace_worker_cache_hits_total")
        misses = self._scraper.value("worker", "millrace_worker_cache_misses_total")
        return hits / (hits + misses) if hits is not None and misses is not None and hits + misses else None

    def _known(self) -> float | None:
        reads = {name: n for name, n in self._scraper.samples("worker").items() if name.startswith(_STATE_READS)}
        total = sum(reads.values())
        return reads.get(_STATE_READS + "{result=known}", 0.0) / total if total else None

    def _named(self, subject: str) -> str:
        level, _, name = subject.partition(":")
        name = self._titles.get(name, name)
        return f"{level} {name}" + (f" {self._english[name]}" if name in self._english else "")


# Rich's own asks another site for its font wherever the picture is shown.
_SVG: Final = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
# Rich counts a Chinese character, two cells wide, as one, and squeezes what holds some.
_SQUEEZED: Final = re.compile(r' textLength="[^"]*"(?=[^>]*>[^<]*[\u2e80-\uffef])')
_KINDS: Final = ("user", "item")
_STATE_READS: Final = "millrace_worker_state_reads_total"
_SHOWN_ACTIONS: Final = frozenset({"impression", "search", "purchase"})


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
