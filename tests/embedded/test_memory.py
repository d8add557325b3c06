"""The plan's memory against that of a real worker process."""

import time

import pytest
import torch
from confluent_kafka import Producer

from tests.bench.bench_worker import events
from tests.bench.rig import WorkerProcess, embedded_servers
from worker.config import Config
from worker.scoring.models import load_model
from worker.scoring.routing import load_routing
from worker.tools.plan import Costs, worker_memory_mb
from worker.tools.yardstick import weights_mb

TIMEOUT_S = 120.0


def resident_mb(config: Config, count: int) -> float:
    """The most that a worker takes while it scores so many events, each with a text of its own."""
    producer = Producer({"bootstrap.servers": config.kafka.bootstrap})
    for topic, key, value in events(count, 1, unique=True):
        producer.produce(topic, value, key)
        producer.poll(0)
    producer.flush()
    worker, most, deadline = WorkerProcess(config), 0.0, time.monotonic() + TIMEOUT_S
    try:
        while (figures := worker.ask())["committed"] < count:
            assert time.monotonic() < deadline
            most = max(most, figures["memory_mb"]["rss"])
            time.sleep(0.1)
        return max(most, figures["memory_mb"]["rss"])
    finally:
        worker.close()


@pytest.mark.skipif(torch.version.cuda is None, reason="the plan's figure is of torch built for CUDA")
@pytest.mark.parametrize(("artifact", "count"), [("null", 8000), ("starter", 200)])
def test_the_predicted_memory_of_a_worker_is_that_of_a_process_within_15_percent(artifact: str, count: int) -> None:
    # Small ones, that so few events fill.
    work = {"queue_tokens_high": 4096, "queue_tokens_low": 2048}
    model = {"artifact": artifact, "device": "cpu", "vector_cache_mb": 1}
    with embedded_servers(model=model, worker=work) as config:
        costs = Costs(batch_ms=1.0, token_us=1.0, weights_mb=weights_mb(load_model(config.model, load_routing())))
        assert worker_memory_mb(costs, config) == pytest.approx(resident_mb(config, count), rel=0.15)
