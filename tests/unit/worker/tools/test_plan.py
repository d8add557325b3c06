"""The capacity model against the simulated worker, a real Redis, and what it says where nothing can help."""

import json
from typing import Any

import numpy as np
import pytest
import redis
from click.testing import CliRunner

from schemas.states import State, encode_state
from tests.simulated import SimulatedShop
from worker.cli.app import main
from worker.config import Config
from worker.demo.embedded import EmbeddedRedis
from worker.errors import InputError
from worker.scoring.cost import CostModel
from worker.tools.plan import Costs, Demand, p99_ms, plan, saturated_rate, state_bytes

CLICKS, REVIEWS, SERVICE = "events.click", "events.review", "events.service"
MIX = {CLICKS: (0.6, 10), SERVICE: (0.2, 20), REVIEWS: (0.2, 40)}
TOKENS = sum(share * tokens for share, tokens in MIX.values())
CONFIG = Config()
TIGHTEST_S = 0.65


def demand(**more: Any) -> Demand:
    return Demand(**{"events_per_second": 100.0, "p99_ms": 1000.0, "tokens": TOKENS, "repeated": 0.0, **more})


def quantile(values: list[float], q: float) -> float:
    return values[min(int(q * len(values)), len(values) - 1)]


@pytest.mark.parametrize(("batch_ms", "use"), [(5.0, 0.5), (40.0, 0.4), (40.0, 0.75)])
def test_the_predicted_p99_is_that_of_the_simulated_worker(use: float, batch_ms: float) -> None:
    costs = Costs(batch_ms=batch_ms, token_us=500.0, event_us=1.0)
    rate = use * saturated_rate(demand(), costs, CONFIG, TIGHTEST_S)
    shop = SimulatedShop(MIX, CostModel(batch_ms / 1e3, 5e-4))
    shop.run(5, lambda t: rate)  # in which it learns what the device can do
    began = shop.clock.now
    shop.run(15, lambda t: rate)
    taken = sorted(sum((shop.latencies(topic, began, began + 14) for topic in MIX), list[float]()))
    # The simulation scores; it does not wait for commits.
    predicted_s = (p99_ms(demand(), costs, CONFIG, rate) - CONFIG.worker.commit_interval_ms) / 1e3
    assert 0.5 < quantile(taken, 0.99) / predicted_s < 1.3


@pytest.mark.parametrize("batch_ms", [5.0, 40.0])
def test_the_predicted_saturated_rate_is_that_of_the_simulated_worker(batch_ms: float) -> None:
    costs = Costs(batch_ms=batch_ms, token_us=500.0, event_us=1.0)
    capacity = saturated_rate(demand(), costs, CONFIG, TIGHTEST_S)
    shop = SimulatedShop({SERVICE: (1.0, int(TOKENS))}, CostModel(batch_ms / 1e3, 5e-4))
    shop.run(5, lambda t: 2 * capacity)
    before, began = len(shop.scored), shop.clock.now
    shop.run(15, lambda t: 2 * capacity)
    assert (len(shop.scored) - before) / (shop.clock.now - began) == pytest.approx(capacity, rel=0.1)


def test_twice_the_events_need_twice_the_workers_and_every_one_has_partitions() -> None:
    costs = Costs(batch_ms=5.0, token_us=500.0)
    plans = [plan(demand(events_per_second=rate), costs, CONFIG, (TIGHTEST_S,)) for rate in (1000.0, 2000.0, 4000.0)]
    for one, two in ((0, 1), (1, 2)):
        assert plans[two].workers == pytest.approx(2 * plans[one].workers, abs=1)
    for each in plans:
        assert each.partitions >= 3 * each.workers
        assert each.partitions % 12 == 0
        assert each.p99_ms <= 1000
        assert each.use <= 0.75


def test_a_tighter_p99_takes_more_workers_and_one_below_all_is_refused_with_its_reason() -> None:
    costs = Costs(batch_ms=5.0, token_us=500.0)
    loose = plan(demand(events_per_second=1000.0), costs, CONFIG, (TIGHTEST_S,))
    tight = plan(demand(events_per_second=1000.0, p99_ms=180.0), costs, CONFIG, (TIGHTEST_S,))
    assert tight.workers > loose.workers
    assert tight.p99_ms <= 180
    with pytest.raises(InputError, match="commit_interval_ms"):
        plan(demand(p99_ms=100.0), costs, CONFIG, (TIGHTEST_S,))


@pytest.mark.parametrize("scales", [1, 3])
def test_the_predicted_memory_of_states_is_redis_own(scales: int) -> None:
    count = 4000
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        sums = np.zeros((2, scales, 64), np.float32)
        before = client.info("memory")["used_memory"]
        pipe = client.pipeline()
        for n in range(count):
            key = f"user{n:08d}"
            state = State(
                kind="user",
                key=key,
                incarnation=1,
                fold_offset=n,
                time_ms=n,
                sums=sums,
                weights=sums[:, :, 0],
                counts=np.zeros((scales, 3), np.float32),
            )
            pipe.set(f"user:{{u{n % 32}}}:{key}", encode_state(state), ex=1000)
        pipe.execute()
        used = client.info("memory")["used_memory"] - before
    # Rounded up as jemalloc does, which not every build of Redis uses.
    assert used / count <= state_bytes(scales) <= 1.15 * used / count


def test_the_command_answers_without_a_model_when_the_costs_are_given() -> None:
    costs = ["--batch-ms", "4", "--token-us", "1.5", "--users", "5000000"]
    result = CliRunner().invoke(main, ["plan", "--events-per-second", "50000", "--p99-ms", "250", *costs, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["workers"] >= 1
    assert found["redis_mb"] > 5_000
    refused = CliRunner().invoke(main, ["plan", "--events-per-second", "5", "--p99-ms", "50", *costs])
    assert refused.exit_code == 6
    assert "--p99-ms" in refused.stderr
