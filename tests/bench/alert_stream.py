"""Weeks of opinions on thousands of subjects, with injected truth. Pure: the same seed gives the same stream.

Calm minutes: negatives and others are Poisson, the rate of a minute being the subject's own times a daily wave (and its
second harmonic), a weekly factor and an hourly noise that remembers itself (AR(1), 15 %); the true share of negatives
waves and wanders a little too. What the model says of them is drawn from its answers on real texts of that class, so
the counts carry its real errors. Around every burst, spike, burn and bot the opinions come one by one, each a real text
with its own answer, fingerprint and author, at its own millisecond.

    burst    negatives come ``factor`` times as often, 1.5 to 20, for 10 to 60 minutes
    burn     the same, rising over 12 to 36 hours to 2.5 to 4 times
    outage   nothing comes for 2 to 8 hours
    spike    a promotion: 4 to 20 times the volume, all of it not negative (no truth: an alert is false)
    viral    one negative text, copied 5 to 60 times a minute by as many authors, a third of them edited (no truth)
    bot      one author, 5 to 30 different negative texts a minute (no truth)

Two in a hundred opinions are late, by four minutes on average and up to 25.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.bench.alert_pool import Pool
from worker.alerts.verdict import Truth
from worker.privacy.fingerprint import fingerprint

MINUTE_MS = 60_000
DAY = 1440
START_MINUTE = 20_454 * DAY  # a Thursday
LATE_SHARE, LATE_MEAN_MINUTES, LATE_MAX_MINUTES = 0.02, 4.0, 25
BUSY_SHARE = 0.04
MARGIN_BEFORE, MARGIN_AFTER = 10, 25
MILLION = 1_000_000

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Injection:
    """What was done to a subject, and the opinions a minute before and while it lasts; no ``truth`` where silence is
    right."""

    subject: str
    kind: str
    start_ms: int
    end_ms: int
    factor: float
    calm_rate: float
    rate: float
    truth: Truth | None


@dataclass(frozen=True)
class Texts:
    """Opinions one by one, in order of arrival: arrival_ms, event_ms int64 [n], p float64 [n], prints and authors."""

    first_minute: int
    last_minute: int
    arrival_ms: Ints
    event_ms: Ints
    p: Floats
    prints: list[str]
    authors: list[str]


@dataclass
class Stream:
    """One subject. cells int64 [n, 4]: arrival minute, event minute, negative mass in millionths, opinions, by arrival.

    negative float64 [minutes], total int64 [minutes]: all opinions by event minute, for the baselines.
    """

    name: str
    minutes: int
    cells: Ints
    texts: list[Texts]
    injections: list[Injection]
    negative: Floats
    total: Ints
    busy: bool = False
    opinions: int = 0


@dataclass
class _Plan:
    rate: Floats
    share: Floats
    extras: list[tuple[str, Ints, bool, float]] = field(default_factory=list)
    injections: list[Injection] = field(default_factory=list)
    windows: list[tuple[int, int]] = field(default_factory=list)


def stream_of(number: int, days: int, pools: list[Pool], seed: int) -> Stream:
    """The stream of one subject; subjects are independent of each other."""
    rng = np.random.default_rng([seed, number])
    busy = rng.random() < BUSY_SHARE
    base = float(np.exp(rng.uniform(np.log(15), np.log(90))) if busy else np.clip(rng.lognormal(-1.9, 1.5), 0.005, 10))
    pool = pools[rng.choice(len(pools), p=[0.5, 0.25, 0.25])]
    name = f"item:{pool.source}-{number}"
    plan = _calm(base, float(np.clip(rng.beta(3, 17), 0.03, 0.4)), days * DAY, rng)
    _inject(plan, name, busy, base, rng)
    return _draw(name, plan, pool, busy, rng)


def _calm(base: float, share: float, minutes: int, rng: np.random.Generator) -> _Plan:
    at = np.arange(minutes)
    hour, day = at / 60 % 24, at // DAY
    peak = rng.uniform(10, 22)
    wave = 1 + rng.uniform(0.3, 0.7) * np.cos((hour - peak) * np.pi / 12) + 0.15 * np.cos((hour - peak) * np.pi / 6)
    weekly = np.exp(rng.normal(0, 0.12, 7))[day % 7]
    hours = minutes // 60 + 2
    noise = np.zeros(hours)
    steps = rng.normal(0, 0.15 * np.sqrt(1 - 0.7**2), hours)
    wander = np.zeros(hours)
    other = rng.normal(0, 0.06 * np.sqrt(1 - 0.9**2), hours)
    for i in range(1, hours):
        noise[i] = 0.7 * noise[i - 1] + steps[i]
        wander[i] = 0.9 * wander[i - 1] + other[i]
    place = at / 60
    rate = base * np.maximum(wave, 0.05) * weekly * np.exp(np.interp(place, np.arange(hours), noise))
    odds = (
        share
        / (1 - share)
        * np.exp(np.interp(place, np.arange(hours), wander) + 0.08 * np.cos((hour - rng.uniform(0, 24)) * np.pi / 12))
    )
    return _Plan(rate, odds / (1 + odds))


def _inject(plan: _Plan, name: str, busy: bool, base: float, rng: np.random.Generator) -> None:
    """At most one a day and subject, from the second day on: what follows one is not blurred by the next."""
    minutes = len(plan.rate)
    last_day = minutes // DAY - 1
    chances: list[tuple[str, float]] = [("burst", 2.2 if busy else 0.12), ("spike", 0.3 if busy else 0.06)]
    chances += [("viral", 0.25 if busy else 0.04), ("bot", 0.15 if busy else 0.02), ("outage", 0.25 if busy else 0.03)]
    chances += [("burn", 0.25 if busy else (0.06 if base > 1 else 0.0))]
    wanted = [kind for kind, mean in chances for _ in range(rng.poisson(mean))]
    rng.shuffle(wanted)
    free = list(rng.permutation(np.arange(1, last_day)))
    for kind in wanted:
        if not free:
            return
        day = int(free.pop())
        if kind == "burn":
            # It needs history and two days to itself.
            near = {day + 1, day + 2, day - 1}
            if day < 4 or day + 2 >= last_day or not near <= {*map(int, free)}:
                continue
            free = [each for each in free if each not in near]
        start = day * DAY + int(rng.integers(0, DAY - 8 * 60 if kind == "outage" else DAY - 60))
        start_ms = (START_MINUTE + start) * MINUTE_MS + int(rng.integers(0, MINUTE_MS))
        _BY_KIND[kind](plan, name, start, start_ms, rng)


def _burst(plan: _Plan, name: str, start: int, start_ms: int, rng: np.random.Generator) -> None:
    factor, length = float(np.exp(rng.uniform(np.log(1.5), np.log(20)))), int(rng.integers(10, 61))
    calm = float(plan.rate[start : start + length].mean())
    extra = (factor - 1) * float((plan.rate * plan.share)[start : start + length].mean())
    times = _times(start_ms, length, extra, rng)
    plan.extras.append(("negative", times, False, 0.0))
    _note(plan, "burst", name, start_ms, length, factor, calm, calm + extra)


def _burn(plan: _Plan, name: str, start: int, start_ms: int, rng: np.random.Generator) -> None:
    factor, length = rng.uniform(2.5, 4), int(rng.integers(24 * 60, 48 * 60))
    rise = int(rng.integers(12 * 60, 24 * 60))
    negatives = (plan.rate * plan.share)[start : start + length]
    extra = negatives * (factor - 1) * np.minimum(np.arange(length) / rise, 1)
    counts = rng.poisson(extra)
    at = start_ms + np.repeat(np.arange(length), counts) * MINUTE_MS
    plan.extras.append(("negative", at + rng.integers(0, MINUTE_MS, len(at)), False, 0.0))
    calm = float(plan.rate[start : start + length].mean())
    _note(plan, "burn", name, start_ms, length, float(factor), calm, calm + float(extra.mean()))


def _outage(plan: _Plan, name: str, start: int, start_ms: int, rng: np.random.Generator) -> None:
    length = int(rng.integers(120, 481))
    calm = float(plan.rate[start : start + length].mean())
    plan.rate[start : start + length] = 0.0
    start_ms = (START_MINUTE + start) * MINUTE_MS
    truth = Truth(subject=name, start_ms=start_ms, end_ms=start_ms + length * MINUTE_MS, kind="outage")
    plan.injections.append(Injection(name, "outage", truth.start_ms, truth.end_ms, 0.0, calm, 0.0, truth))


def _spike(plan: _Plan, name: str, start: int, start_ms: int, rng: np.random.Generator) -> None:
    factor, length = float(np.exp(rng.uniform(np.log(4), np.log(20)))), int(rng.integers(20, 181))
    calm = float(plan.rate[start : start + length].mean())
    extra = min((factor - 1) * calm, 250.0)
    plan.extras.append(("positive", _times(start_ms, length, extra, rng), False, 0.0))
    _note(plan, "spike", name, start_ms, length, factor, calm, calm + extra)


def _viral(plan: _Plan, name: str, start: int, start_ms: int, rng: np.random.Generator) -> None:
    a_minute, length = float(np.exp(rng.uniform(np.log(5), np.log(60)))), int(rng.integers(20, 61))
    calm = float(plan.rate[start : start + length].mean())
    plan.extras.append(("viral", _times(start_ms, length, a_minute, rng), False, 0.33))
    _note(plan, "viral", name, start_ms, length, 0.0, calm, calm + a_minute)


def _bot(plan: _Plan, name: str, start: int, start_ms: int, rng: np.random.Generator) -> None:
    a_minute, length = float(np.exp(rng.uniform(np.log(5), np.log(30)))), int(rng.integers(20, 61))
    calm = float(plan.rate[start : start + length].mean())
    plan.extras.append(("negative", _times(start_ms, length, a_minute, rng), True, 0.0))
    _note(plan, "bot", name, start_ms, length, 0.0, calm, calm + a_minute)


_BY_KIND: dict[str, Any] = {
    "burst": _burst, "burn": _burn, "outage": _outage, "spike": _spike, "viral": _viral, "bot": _bot,
}  # fmt: skip


def _times(start_ms: int, length: int, a_minute: float, rng: np.random.Generator) -> Ints:
    count = int(rng.poisson(a_minute * length))
    return np.sort(start_ms + rng.integers(0, length * MINUTE_MS, count))


def _note(
    plan: _Plan, kind: str, name: str, start_ms: int, length: int, factor: float, calm: float, rate: float
) -> None:
    end_ms = start_ms + length * MINUTE_MS
    truth = Truth(subject=name, start_ms=start_ms, end_ms=end_ms, kind=kind) if kind in ("burst", "burn") else None
    plan.injections.append(Injection(name, kind, start_ms, end_ms, factor, calm, rate, truth))
    first = start_ms // MINUTE_MS - START_MINUTE - MARGIN_BEFORE
    last = min(end_ms // MINUTE_MS - START_MINUTE + MARGIN_AFTER, len(plan.rate) - 1)
    plan.windows.append((max(first, 0), last))


def _draw(name: str, plan: _Plan, pool: Pool, busy: bool, rng: np.random.Generator) -> Stream:
    minutes = len(plan.rate)
    of_negatives, of_others = pool.p_negative[pool.negative], pool.p_negative[~pool.negative]
    counts = rng.poisson(plan.rate * plan.share), rng.poisson(plan.rate * (1 - plan.share))
    negative, total = np.zeros(minutes), counts[0] + counts[1]
    in_text = np.zeros(minutes, bool)
    for first, last in plan.windows:
        in_text[first : last + 1] = True
    parts: list[Ints] = []
    for count, answers in zip(counts, (of_negatives, of_others), strict=True):
        calm = np.where(in_text, 0, count)
        late = rng.binomial(calm, LATE_SHARE)
        on_time = calm - late
        mass = _masses(on_time, answers, rng)
        negative += mass
        at = np.flatnonzero(on_time)
        parts.append(np.stack([at, at, np.rint(mass[at] * MILLION).astype(np.int64), on_time[at]], 1))
        of_late = np.repeat(np.arange(minutes), late)
        delay = np.minimum(1 + rng.exponential(LATE_MEAN_MINUTES, len(of_late)), LATE_MAX_MINUTES).astype(np.int64)
        said = answers[rng.integers(0, len(answers), len(of_late))]
        np.add.at(negative, of_late, said)
        arrives = np.minimum(of_late + delay, minutes - 1)
        parts.append(np.stack([arrives, of_late, np.rint(said * MILLION).astype(np.int64), np.ones_like(of_late)], 1))
    cells = _merged(np.concatenate(parts))
    cells[:, :2] += START_MINUTE
    texts = [_texts(plan, window, counts, pool, rng) for window in _joined(plan.windows)]
    for each in texts:
        event = each.event_ms // MINUTE_MS - START_MINUTE
        inside = event < minutes
        np.add.at(negative, event[inside], each.p[inside])
        extra = np.bincount(event[inside], minlength=minutes)
        shown = slice(each.first_minute - START_MINUTE, each.last_minute - START_MINUTE + 1)
        total[shown] = extra[shown]
    opinions = int(cells[:, 3].sum()) + sum(len(each.p) for each in texts)
    return Stream(name, minutes, cells, texts, plan.injections, negative, total, busy, opinions)


def _masses(counts: Ints, answers: Floats, rng: np.random.Generator) -> Floats:
    """Sum of as many drawn answers as each minute counts."""
    drawn = answers[rng.integers(0, len(answers), int(counts.sum()))]
    return np.bincount(np.repeat(np.arange(len(counts)), counts), weights=drawn, minlength=len(counts))


def _merged(cells: Ints) -> Ints:
    """Cells of the same arrival and event minute joined, by arrival; a minute's own events come last in it."""
    key = cells[:, 0] * 64 - (cells[:, 0] - cells[:, 1])
    order = np.argsort(key, kind="stable")
    cells, key = cells[order], key[order]
    if not len(cells):
        return cells
    first = np.flatnonzero(np.diff(key, prepend=-1))
    return np.stack(
        [cells[first, 0], cells[first, 1], np.add.reduceat(cells[:, 2], first), np.add.reduceat(cells[:, 3], first)], 1
    )


def _joined(windows: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for first, last in sorted(windows):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _texts(
    plan: _Plan, window: tuple[int, int], counts: tuple[Ints, Ints], pool: Pool, rng: np.random.Generator
) -> Texts:
    first, last = window
    negatives, others = np.flatnonzero(pool.negative), np.flatnonzero(~pool.negative)
    positives = np.flatnonzero(pool.positive)
    times: list[Ints] = []
    chosen: list[Ints] = []
    prints: list[str] = []
    authors: list[str] = []

    def put(at: Ints, texts: Ints, author: str | None, copies: float = -1.0) -> None:
        times.append(at)
        chosen.append(texts)
        marks = [pool.prints[i] for i in texts]
        if copies >= 0:
            edited = rng.random(len(marks)) < copies
            marks = [
                fingerprint(_edited(pool.texts[i], rng)) if change else mark
                for i, mark, change in zip(texts, marks, edited, strict=True)
            ]
        prints.extend(marks)
        who = rng.integers(0, 2**48, len(at))
        authors.extend([author] * len(at) if author else [f"u-{each:012x}" for each in who])

    for count, of_class in zip(counts, (negatives, others), strict=True):
        inside = count[first : last + 1]
        at = (START_MINUTE + first + np.repeat(np.arange(len(inside)), inside)) * MINUTE_MS
        put(at + rng.integers(0, MINUTE_MS, len(at)), _deal(of_class, len(at), rng), None)
    for kind, at, one_author, edits in plan.extras:
        minute = at // MINUTE_MS - START_MINUTE
        inside_at = at[(minute >= first) & (minute <= last)]
        if not len(inside_at):
            continue
        if kind == "viral":
            clear = negatives[(pool.p_negative[negatives] > 0.8) & np.array([bool(pool.prints[i]) for i in negatives])]
            put(inside_at, np.full(len(inside_at), rng.choice(clear)), None, edits)
        else:
            of_class = positives if kind == "positive" else negatives
            put(inside_at, _deal(of_class, len(inside_at), rng), "u-bot" if one_author else None)
    event_ms, texts = np.concatenate(times), np.concatenate(chosen)
    late = rng.random(len(event_ms)) < LATE_SHARE
    delay = np.minimum(rng.exponential(LATE_MEAN_MINUTES, len(event_ms)), LATE_MAX_MINUTES) * MINUTE_MS
    arrival_ms = np.minimum(
        event_ms + np.where(late, delay, 0).astype(np.int64), (START_MINUTE + last + 1) * MINUTE_MS - 1
    )
    order = np.argsort(arrival_ms, kind="stable")
    return Texts(
        START_MINUTE + first,
        START_MINUTE + last,
        arrival_ms[order],
        event_ms[order],
        pool.p_negative[texts][order],
        [prints[i] for i in order],
        [authors[i] for i in order],
    )


def _deal(texts: Ints, count: int, rng: np.random.Generator) -> Ints:
    """As many texts, none again before all have come."""
    rounds = -(-count // len(texts)) if count else 0
    return np.concatenate([rng.permutation(texts) for _ in range(rounds)] or [texts[:0]])[:count]


def _edited(text: str, rng: np.random.Generator) -> str:
    """A copy as people and bots make them: something before it, behind it, or a few letters gone."""
    cut = int(rng.integers(0, max(len(text) - 3, 1)))
    ways = (f"{text}！！！", f"转发：{text}", f"{text} 求扩散", f"RT {text}", text[:cut] + text[cut + 2 :], text[:-4])
    return ways[int(rng.integers(0, len(ways)))]
