"""The scoring worker as a role: the engine between real Kafka, Redis and the configured model."""

from __future__ import annotations

import gc
import threading
from contextlib import ExitStack, closing
from typing import Any, Final

from prometheus_client import CollectorRegistry

from model.scoring import Scorer
from schemas.topics import EVENTS_DEAD, FOLDS, INPUTS, OPINIONS, SCORES_CTR, SCORES_INTENT, SCORES_SENTIMENT
from worker.config import Config, KafkaConfig
from worker.errors import TopicError
from worker.kafka.admin import partition_counts, topic_ids
from worker.kafka.registry import SchemaRegistry
from worker.kafka.sink import KafkaSink, Sink
from worker.kafka.slot import Slot
from worker.kafka.source import KafkaSource, Source
from worker.kafka.transaction import transactional_sink
from worker.metrics import WorkerMetrics
from worker.observe import Observer
from worker.privacy.erasure_feed import ErasureFeed
from worker.privacy.erasures import NOBODY, Erasures
from worker.redis.state_reader import StateReader
from worker.scoring.batcher import Batcher
from worker.scoring.cache import VectorCache
from worker.scoring.cost import CostModel
from worker.scoring.decode import BACKFILL, Decoder, lanes_of
from worker.scoring.device import Device, ThreadedDevice
from worker.scoring.emit import Emitter, FoldBuffer
from worker.scoring.engine import Engine
from worker.scoring.intake import Intake
from worker.scoring.models import click_head, load_model, on_gpu
from worker.scoring.regulator import Regulator
from worker.scoring.routing import Routing, load_routing
from worker.scoring.score import BatchScorer, Reader

GC_THRESHOLD: Final = (50_000, 20, 100)
FIRST_GUESS_S: Final = {False: 5e-4, True: 5e-5}
"""Seconds a token, on CPU and on a GPU, until measured. Slow rather than quick: a first batch too large takes long."""


def run(config: Config, stop: threading.Event, registry: CollectorRegistry | None = None) -> None:
    """Score until ``stop`` is set, then finish what is in hand and leave the group. Metrics go to ``registry``.

    Raises `TopicError` when topics are missing or the folds topics' partitions are not ``kafka.fold_shards``,
    `KafkaError`, `OffsetLostError`, `RegistryError`, `ModelLoadError`, and `ConfigError` for a slot that is taken, a
    registry, a routing or a lexicon of aspects that cannot be used.
    """
    registry = registry or CollectorRegistry()
    metrics = WorkerMetrics(registry)
    check_topics(config.kafka)
    routing = load_routing(config.worker.routing)
    scorer = load_model(config.model, routing)
    with ExitStack() as stack:
        # Tens of thousands of short-lived objects are alive at any time and none in a cycle: at the default threshold
        # the collector took a quarter of the main loop (23 instead of 30 us an event without it).
        stack.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(*GC_THRESHOLD)
        reader = StateReader(config, scorer.space, lambda result, n: metrics.state_reads.labels(result).inc(n))
        stack.callback(reader.close)
        device = ThreadedDevice(batch_scorer(config, scorer, routing, reader), config.worker.device_timeout_ms / 1000)
        stack.callback(device.close)
        erasures = stack.enter_context(closing(ErasureFeed(config.kafka, "worker")))  # before the first event
        schema_registry = SchemaRegistry(config.registry) if config.registry.url else None
        if schema_registry is not None:
            stack.callback(schema_registry.close)
        group = f"{config.kafka.group_prefix}.worker"
        transactional = config.worker.delivery == "exactly_once" and not config.kafka.embedded
        name = ""
        if transactional or config.kafka.static_members:
            slot = Slot(config.worker.slot, group)
            stack.callback(slot.close)
            name = slot.name
        instance = name if config.kafka.static_members else None
        source = KafkaSource(config.kafka, topic_ids(config.kafka, lanes_of(config.kafka)), group, instance)
        stack.callback(source.close)
        sink: Sink = (
            transactional_sink(
                config.kafka,
                f"{group}.{name}",
                config.worker.transaction_timeout_ms,
                source.membership,
                source.position,
                source.committed,
                lambda result: metrics.transactions.labels(result).inc(),
            )
            if transactional
            else KafkaSink(config.kafka)
        )
        stack.callback(sink.close, config.worker.drain_timeout_ms / 1000)
        engine = build(config, scorer, routing, source, sink, device, metrics, erasures.known, schema_registry)
        observer = stack.enter_context(Observer(config.observe, registry, engine.health))
        while not stop.is_set():
            erasures.poll()
            engine.step()
            observer.turned()
        engine.finish()


def build(
    config: Config,
    scorer: Scorer,
    routing: Routing,
    source: Source,
    sink: Sink,
    device: Device,
    metrics: WorkerMetrics,
    erasures: Erasures = NOBODY,
    schema_registry: SchemaRegistry | None = None,
    **clocks: Any,
) -> Engine:
    """An engine of the configuration between the given edges; ``clock`` and ``wall_ms`` as for `Engine`."""
    kafka, worker = config.kafka, config.worker
    lanes = lanes_of(kafka)
    ids = topic_ids(kafka, lanes)
    gpu = on_gpu(scorer)
    objectives_s = worker.objectives_s(on_gpu=gpu)
    cache = VectorCache(config.model.vector_cache_mb << 20)
    return Engine(
        source,
        sink,
        device,
        Intake(
            lanes,
            scorer,
            cache,
            erasures,
            metrics.forgotten.inc,
            kafka.backfill,
            Decoder(lanes, schema_registry, kafka.fields),
            lambda topic: metrics.passed_over.labels(topic).inc(),
        ),
        Batcher(objectives_s, worker.max_batch_tokens, worker.max_batch_units, CostModel(b_s=FIRST_GUESS_S[gpu])),
        Emitter(scorer.version, routing, worker, ids),
        FoldBuffer(scorer.space, kafka.fold_shards, ids),
        Regulator(
            {topic: BACKFILL if topic in kafka.backfill else lane for topic, lane in lanes.items()},
            objectives_s,
            worker.queue_tokens_high,
            worker.queue_tokens_low,
        ),
        worker,
        metrics,
        **clocks,
    )


def check_topics(kafka: KafkaConfig) -> None:
    """Raises `TopicError` when a topic is missing or folds are not split into ``kafka.fold_shards`` partitions."""
    outputs = (SCORES_CTR, SCORES_SENTIMENT, SCORES_INTENT, OPINIONS, EVENTS_DEAD)
    names = [*(kafka.topic(name) for name in (*INPUTS, *outputs, *FOLDS.values())), *kafka.added_topics]
    counts = partition_counts(kafka, names)
    for name in FOLDS.values():
        if (found := counts[kafka.topic(name)]) != kafka.fold_shards:
            raise TopicError(
                f"{kafka.topic(name)} has {found} partitions, kafka.fold_shards is {kafka.fold_shards}: the count is"
                " part of the data. Set kafka.fold_shards to what the topic was made with, or make the topic anew"
            )


def batch_scorer(config: Config, scorer: Scorer, routing: Routing, reader: Reader) -> BatchScorer:
    """The device's work for this configuration."""
    head = click_head(scorer, config)
    return BatchScorer(scorer, head, head.features, reader, config.profiles.scales_s, routing.heads)
