"""How many workers, partitions, and how much memory a shop needs: the capacity model of ``millrace plan``. Pure.

A batch of x tokens takes t = a + b·x. At λ events a second and worker, each bringing τ new tokens, a batch holds what
came during the one before it, so its time settles at T = a + b·τ·λ·T, or T = a / (1 - ρ) with ρ = b·τ·λ. Arrivals
scatter (Poisson): Var T = (b·τ)²·λ·T·2 / (1 - ρ²). An event waits for the rest of the batch in flight and then for its
own, so its time to the score is at most about 2·T + 2.5·sd(T) in 99 of 100 cases, plus what reading, writing and
committing take. The saturated rate follows from the batcher's token budget. `tests/unit/worker/tools/test_plan.py`
holds this against the simulated worker, `make bench-scale` and `make bench-latency` against real processes;
`tests/embedded/test_memory.py` holds the memory against a real worker's.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from schemas.folds import VECTOR_SIZE
from worker.config import Config
from worker.errors import InputError
from worker.scoring.batcher import MIN_BUDGET_TOKENS

HEADROOM: Final = 0.75
"""How much of its saturated rate a worker is planned to be used: the rest is for bursts and for one that is away."""
PARTITIONS_PER_WORKER: Final = 3
"""With so many of each topic a worker more or less changes nobody's share by more than a third."""
PARTITIONS_STEP: Final = 12
WORKERS_MAX: Final = 10_000
LOOP_S: Final = 0.006
"""Reading, handing over and writing: three turns of the loop at its shortest wait."""
PROCESS_MB: Final = 85
"""A worker without model, cache and work: the interpreter, the libraries, the Kafka clients."""
TORCH_MB: Final = 470
"""What torch adds when it is imported: 2.13 as it is built for CUDA. A build for CPU alone takes less."""
WEIGHTS_FACTOR: Final = 2.0
"""Resident memory of a loaded model against its weights as float32: on CPU the encoder's layers are there once more,
laid out for serving, beside tokenizer, click head and what loading leaves behind."""
PASS_MB: Final = 80
"""Buffers of an encoder pass on two threads, and what libraries keep from the first one on."""
WORK_BYTES_PER_LOAD: Final = 400
"""Memory of unfinished work for each token that it counts for: an event of 20 tokens takes about 8 KB on its way."""
PREFETCH_MB: Final = 16


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What comes in. ``tokens`` is the mean length of an event's texts, ``repeated`` the share of them seen before."""

    events_per_second: float
    p99_ms: float
    tokens: float = 25.0
    repeated: float = 0.4
    users: int = 0
    items: int = 0


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What the work costs: a batch, each of its tokens, each event outside of the device; and the model's weights in
    memory, as float32."""

    batch_ms: float
    token_us: float
    event_us: float = 60.0
    weights_mb: float = 0.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed. ``capacity`` is the saturated rate of one worker, ``use`` the planned share of it."""

    workers: int
    partitions: int
    capacity_events_per_second: float
    use: float
    p99_ms: float
    batch_ms: float
    worker_memory_mb: int
    redis_mb: int


def plan(demand: Demand, costs: Costs, config: Config, objectives_s: tuple[float, ...]) -> Plan:
    """The fewest workers that keep up with headroom and meet the p99. Raises `InputError` where none can."""
    capacity = saturated_rate(demand, costs, config, min(objectives_s))
    workers = max(1, math.ceil(demand.events_per_second / (HEADROOM * capacity)))
    best_ms = p99_ms(demand, costs, config, 0.0)
    if best_ms > demand.p99_ms:
        raise InputError(
            f"--p99-ms {demand.p99_ms:g} cannot be met by any number of workers: an event alone takes {best_ms:.0f} ms,"
            f" of which {config.worker.commit_interval_ms} ms is worker.commit_interval_ms. Shorten that, or take a"
            " faster device or a smaller model"
        )
    while p99_ms(demand, costs, config, demand.events_per_second / workers) > demand.p99_ms:
        workers += 1 + workers // 50
        if workers > WORKERS_MAX:
            raise InputError(f"more than {WORKERS_MAX} workers: check --events-per-second and the costs")
    rate = demand.events_per_second / workers
    steps = math.ceil(PARTITIONS_PER_WORKER * workers / PARTITIONS_STEP)
    return Plan(
        workers=workers,
        partitions=steps * PARTITIONS_STEP,
        capacity_events_per_second=round(capacity, 1),
        use=round(rate / capacity, 3),
        p99_ms=round(p99_ms(demand, costs, config, rate), 1),
        batch_ms=round(1e3 * _batch(demand, costs, rate)[0], 1),
        worker_memory_mb=worker_memory_mb(costs, config),
        redis_mb=redis_mb(demand, len(config.profiles.scales_s)),
    )


def saturated_rate(demand: Demand, costs: Costs, config: Config, tightest_s: float) -> float:
    """Events a second of one worker that always has enough to do."""
    a, b, tokens = _line(demand, costs)
    within = (tightest_s / 2 - a) / b if b > 0 else math.inf
    worth = a / b if b > 0 else 0.0
    budget = min(config.worker.max_batch_tokens, max(within, worth, MIN_BUDGET_TOKENS))
    units = min(config.worker.max_batch_units, max(budget / tokens, 1.0) if tokens > 0 else math.inf)
    return min(units / (a + b * tokens * units), 1e6 / costs.event_us)


def p99_ms(demand: Demand, costs: Costs, config: Config, rate: float) -> float:
    """Milliseconds from produced to committed in 99 of 100 cases, of a worker at ``rate``; infinite above capacity."""
    batch_s, sd_s = _batch(demand, costs, rate)
    host_s = LOOP_S + costs.event_us * 1e-6 * max(rate * batch_s, 1.0)
    return 1e3 * (2 * batch_s + 2.5 * sd_s + host_s) + config.worker.commit_interval_ms


def worker_memory_mb(costs: Costs, config: Config) -> int:
    """Resident memory of one worker on CPU, cache and queues full: within 15 % of a real one's."""
    model = TORCH_MB + WEIGHTS_FACTOR * costs.weights_mb + PASS_MB if costs.weights_mb else 0.0
    work = config.worker.queue_tokens_high * WORK_BYTES_PER_LOAD / 2**20
    return math.ceil(PROCESS_MB + model + config.model.vector_cache_mb + work + PREFETCH_MB)


def redis_mb(demand: Demand, scales: int) -> int:
    """Memory of all states in Redis."""
    return math.ceil((demand.users + demand.items) * state_bytes(scales) / 2**20)


def state_bytes(scales: int, id_bytes: int = 12) -> int:
    """Memory of one user or item in Redis: its value as `schemas.states` writes it, its key, and Redis's own entries
    (a value object, an entry each in the tables of keys and of expiries)."""
    value = 32 + 4 * (2 * scales * VECTOR_SIZE + 5 * scales) + id_bytes
    key = id_bytes + len("user:{u00}:")
    return _allocated(value + 6) + _allocated(key + 4) + 16 + 2 * (32 + 12)


def _allocated(size: int) -> int:
    """What jemalloc gives for a request: four sizes to each doubling."""
    if size <= 128:
        return -(-size // 16) * 16
    step = 1 << ((size - 1).bit_length() - 3)
    return -(-size // step) * step


def _line(demand: Demand, costs: Costs) -> tuple[float, float, float]:
    return costs.batch_ms / 1e3, costs.token_us / 1e6, demand.tokens * (1 - demand.repeated)


def _batch(demand: Demand, costs: Costs, rate: float) -> tuple[float, float]:
    """Mean and standard deviation of a batch's seconds at ``rate`` events a second."""
    a, b, tokens = _line(demand, costs)
    use = b * tokens * rate
    if use >= 1 or costs.event_us * 1e-6 * rate >= 1:
        return math.inf, math.inf
    mean_s = max(a / (1 - use), a + b * tokens)
    return mean_s, b * tokens * math.sqrt(2 * rate * mean_s / (1 - use * use))
