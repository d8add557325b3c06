"""Alerts against injected truth, beside three textbook detectors on the same stream.

    python -m tests.bench.bench_alerts [--quick] [--data DIR] [--subjects N] [--days N] [--seed N] [--picture FILE]

Two weeks of 3,600 subjects (50,400 subject-days), texts of three real data sets scored by the starter with its real
errors (once; the scores are kept in the temporary folder); see `tests/bench/alert_stream.py` for what is injected. Ours
is the code of the live role. The judged bursts are those of three times and more, at twenty opinions a minute and more
while they last. Beside their usual settings the baselines are shown at the threshold that comes nearest to our rate of
false alarms from above, since a detector that alarms all day finds everything. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from schemas.scores import Alert
from tests.bench.alert_contenders import BASELINES, millrace, openings
from tests.bench.alert_picture import draw
from tests.bench.alert_pool import Pool, load_pools
from tests.bench.alert_stream import Injection, stream_of
from worker.alerts.baseline import ErrorRates
from worker.alerts.rules import RuleBook, RulesFile
from worker.alerts.verdict import Opened, Truth, Verdict, verdict

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MILLRACE_DATA", ROOT.parent / "shared" / "data"))
JUDGED_FACTOR, JUDGED_RATE = 3.0, 20.0
GRIDS: dict[str, list[float]] = {
    "fixed_threshold": [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9],
    "mean_3_sigma": [3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 60.0],
    "ewma_z": [3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 60.0],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 subjects: a minute or two, and wide intervals")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets; also MILLRACE_DATA")
    parser.add_argument("--subjects", type=int, default=3600)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so many, with the subjects done by then")
    parser.add_argument("--texts", type=int, default=3000, help="texts a data set in the pool")
    parser.add_argument("--rules", default="", help="rules file; by default the shipped one")
    parser.add_argument("--picture", type=Path, default=Path(".millrace/bench/alerts.png"))
    parser.add_argument("--dump", type=Path, help="all false alarms and missed bursts, as JSON Lines")
    asked = parser.parse_args()
    if asked.quick:
        asked.subjects = min(asked.subjects, 300)
    if not (asked.data / "reviews_zh.train.jsonl.gz").is_file():
        sys.exit(f"{asked.data} has no reviews_zh.train.jsonl.gz; say where the data files are: --data DIR")
    run(asked)


def run(asked: argparse.Namespace) -> None:
    began = time.monotonic()
    pools = load_pools(asked.data, asked.texts)
    rates = {pool.source: ErrorRates(*pool.seen) for pool in pools}
    for pool in pools:
        print(f"{pool.source}: mean p(negative) {pool.seen[0]:.3f} of negatives, {pool.seen[1]:.3f} of others")
    print(f"texts ready after {time.monotonic() - began:.0f} s", flush=True)
    book = RulesFile(asked.rules).book
    ours: list[Alert] = []
    injections: list[Injection] = []
    others: dict[str, list[list[Opened]]] = {name: [[] for _ in GRIDS[name]] for name in BASELINES}
    opinions, seconds = 0, 0.0
    job = partial(_one, days=asked.days, pools=pools, seed=asked.seed, book=book, rates=rates)
    with multiprocessing.get_context("spawn").Pool(asked.jobs) as workers:
        for number, part in enumerate(workers.imap_unordered(job, range(asked.subjects), chunksize=8), 1):
            injections += part.injections
            opinions += part.opinions
            seconds += part.cpu_seconds
            ours += part.ours
            for name, found in part.others.items():
                for kept, more in zip(others[name], found, strict=True):
                    kept += more
            if number % 200 == 0:
                print(f"{number} subjects, {opinions} opinions, {time.monotonic() - began:.0f} s", flush=True)
            if asked.minutes and time.monotonic() - began > 60 * asked.minutes:
                print(f"stopped after {asked.minutes} minutes with {number} of {asked.subjects} subjects")
                asked.subjects = number
                break
    _tell(asked, ours, others, injections, opinions, seconds, time.monotonic() - began)


@dataclass(frozen=True)
class Part:
    """What one subject brought; others: by contender and threshold."""

    ours: list[Alert]
    others: dict[str, list[list[Opened]]]
    injections: list[Injection]
    opinions: int
    cpu_seconds: float


def _one(number: int, *, days: int, pools: list[Pool], seed: int, book: RuleBook, rates: dict[str, ErrorRates]) -> Part:
    stream = stream_of(number, days, pools, seed)
    source = stream.name.removeprefix("item:").rpartition("-")[0]
    started = time.process_time()
    ours = millrace(stream, book, rates[source])
    seconds = time.process_time() - started
    others = {name: openings(stream, score(stream), GRIDS[name]) for name, (score, _) in BASELINES.items()}
    return Part(ours, others, stream.injections, stream.opinions, seconds)


def _tell(
    asked: argparse.Namespace,
    ours: list[Alert],
    others: dict[str, list[list[Opened]]],
    injections: list[Injection],
    opinions: int,
    seconds: float,
    wall: float,
) -> None:
    subject_days = float(asked.subjects * asked.days)
    truths = [each.truth for each in injections if each.truth is not None]
    judged = [each.truth for each in injections if _judged(each) and each.truth is not None]
    opened = [Opened(each.subject, each.opened_at_ms, each.metric) for each in ours if each.status == "opened"]

    def assess(alerts: list[Opened]) -> Verdict:
        return verdict(alerts, truths, subject_days, judged=judged)

    mine = assess(opened)
    curves = {name: [assess(found) for found in others[name]] for name in others}
    contenders = {"millrace": mine}
    same_budget = {}
    for name, (_, usual) in BASELINES.items():
        contenders[name] = curves[name][GRIDS[name].index(usual)]
        same_budget[name] = _nearest(curves[name], mine)
    kinds = _by_kind(opened, injections)
    result: dict[str, Any] = {name: _row(each) for name, each in contenders.items()}
    result["baselines_at_fewest_false_alarms"] = {name: _row(each) for name, each in same_budget.items()}
    result["by_kind"] = kinds
    result["stream"] = {
        "subject_days": subject_days,
        "opinions": opinions,
        "judged_bursts": len(judged),
        "seed": asked.seed,
        "detector_cpu_seconds": round(seconds, 1),
        "seconds": round(wall, 1),
    }
    _print(contenders, same_budget, kinds)
    if asked.dump:
        _dump(asked.dump, opened, injections)
    draw(asked.picture, mine, curves, GRIDS, {name: usual for name, (_, usual) in BASELINES.items()})
    print(f"picture: {asked.picture}")
    print(json.dumps(result))


def _judged(each: Injection) -> bool:
    return each.kind == "burst" and each.factor >= JUDGED_FACTOR and each.rate >= JUDGED_RATE


def _nearest(curve: list[Verdict], mine: Verdict) -> Verdict:
    """The setting with no more false alarms than ours; where none is so quiet, the quietest."""
    quiet = [each for each in curve if each.false_alarms <= mine.false_alarms]
    if quiet:
        return max(quiet, key=lambda each: each.found)
    return min(curve, key=lambda each: each.false_alarms)


def _row(each: Verdict) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(each)
    return row


def _by_kind(opened: list[Opened], injections: list[Injection]) -> dict[str, Any]:
    """How many of each kind of injection were answered; of those without truth, how many raised an alarm."""
    told: dict[str, Any] = {}
    groups = {
        "burst_3x_20_a_minute": [each for each in injections if _judged(each)],
        "burst_3x_calm_20_a_minute": [each for each in injections if _judged(each) and each.calm_rate >= JUDGED_RATE],
        "burst_other": [each for each in injections if each.kind == "burst" and not _judged(each)],
        **{
            kind: [each for each in injections if each.kind == kind]
            for kind in ("burn", "outage", "spike", "viral", "bot")
        },
    }
    by_subject: dict[str, list[Opened]] = {}
    for alert in opened:
        by_subject.setdefault(alert.subject, []).append(alert)
    for name, group in groups.items():
        delays = []
        for each in group:
            subject = each.truth.subject if each.truth else each.subject
            as_truth = Truth(subject=subject, start_ms=each.start_ms, end_ms=each.end_ms, kind=each.kind)
            found = verdict(by_subject.get(subject, []), [as_truth], 1.0, judged=[as_truth])
            if found.median_delay_s is not None:
                delays.append(found.median_delay_s)
        told[name] = {
            "injected": len(group),
            "alerted": len(delays),
            "median_delay_s": round(float(np.median(delays)), 1) if delays else None,
        }
    return told


def _print(contenders: dict[str, Verdict], same_budget: dict[str, Verdict], kinds: dict[str, Any]) -> None:
    print(f"\n{'':34}{'precision':>10}{'recall':>8}{'delay s':>9}{'false / 1000 d':>16}{'alerts':>8}")
    rows = {**contenders, **{f"{name}, fewest false alarms": each for name, each in same_budget.items()}}
    for name, each in rows.items():
        delay = "-" if each.median_delay_s is None else f"{each.median_delay_s:.0f}"
        print(
            f"{name:34}{each.precision or 0:>10.3f}{each.recall or 0:>8.3f}{delay:>9}"
            f"{each.false_alarms_per_1000_subject_days or 0:>16.3f}{each.alerts:>8}"
        )
    print()
    for name, each in kinds.items():
        print(f"{name:28}{each['alerted']:>5} of {each['injected']:<5} median delay {each['median_delay_s']} s")


def _dump(file: Path, opened: list[Opened], injections: list[Injection]) -> None:
    lines = []
    truths = [each.truth for each in injections if each.truth is not None]
    for alert in opened:
        same = [truth for truth in truths if truth.subject == alert.subject]
        if verdict([alert], same, 1.0).false_alarms:
            near = [
                {
                    "kind": each.kind,
                    "start_ms": each.start_ms - alert.opened_at_ms,
                    "end_ms": each.end_ms - alert.opened_at_ms,
                }
                for each in injections
                if each.subject == alert.subject
            ]
            lines.append({"false": msgspec.to_builtins(alert), "near": near})
    for each in injections:
        if _judged(each) and each.truth is not None:
            mine = [alert for alert in opened if alert.subject == each.subject]
            if not verdict(mine, [each.truth], 1.0).found:
                lines.append({"missed": each.kind, "subject": each.subject, "factor": each.factor, "rate": each.rate})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
