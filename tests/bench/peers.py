"""The contenders of bench_peers.py: runs in the peers' environment and imports nothing of ours.

    python peers.py CONTENDER --bootstrap HOST:PORT --model FOLDER --topics A,B,C --events N --threads N

Reads the topics from the beginning, encodes each event's text with the model of the folder (mean of the last states),
writes one small JSON record an event to ``peer.scores``, and prints one JSON line: events from the end of the first
batch, which is left out, to the last of ``--events``, and the seconds that they took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

OUTPUT = "peer.scores"
BATCH = 32  # texts of one padded pass
TAKE = 256  # events that a batching contender gathers, as ours does


class Meter:
    """Counts events from the end of the first batch on, and ends the process when all are done."""

    def __init__(self, events: int) -> None:
        self._left, self._start_s, self._events = events, 0.0, 0

    def done(self, events: int) -> None:
        now = time.monotonic()
        self._left -= events
        if not self._start_s:
            self._start_s = now
            return
        self._events += events
        if self._left <= 0:
            print(json.dumps({"events": self._events, "seconds": now - self._start_s}), flush=True)
            sys.stderr.flush()
            os._exit(0)  # the frameworks' own endings take seconds and are not what is measured


def text_of(value: bytes) -> str:
    event = json.loads(value)
    return str(event.get("title") or event["text"]).lower()


def record(value: bytes, row: Any) -> bytes:
    return json.dumps({"event_id": json.loads(value)["event_id"], "score": float(row[0])}).encode()


class HuggingFace:
    """The library's forward, padded by batch, longest texts first, in the precision that the folder names."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder, attn_implementation="sdpa", dtype="auto").eval()

    def encode(self, texts: list[str]) -> list[Any]:
        import torch

        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        rows: list[Any] = [None] * len(texts)
        with torch.inference_mode():
            for at in range(0, len(order), BATCH):
                part = order[at : at + BATCH]
                inputs = self._tokenizer(
                    [texts[i] for i in part], padding=True, truncation=True, max_length=64, return_tensors="pt"
                )
                mask = inputs["attention_mask"][:, :, None]
                states = self._model(**inputs).last_hidden_state.float()
                for i, row in zip(part, ((states * mask).sum(1) / mask.sum(1)).numpy(), strict=True):
                    rows[i] = row
        return rows


def consumer(args: argparse.Namespace) -> Any:
    from confluent_kafka import Consumer

    settings = {"bootstrap.servers": args.bootstrap, "group.id": f"peer-{uuid.uuid4().hex}"}
    reader = Consumer(settings | {"auto.offset.reset": "earliest", "enable.auto.commit": True})
    reader.subscribe(args.topics.split(","))
    return reader


def producer(args: argparse.Namespace) -> Any:
    from confluent_kafka import Producer

    return Producer({"bootstrap.servers": args.bootstrap, "linger.ms": 20})


def faust_app(args: argparse.Namespace) -> tuple[Any, Any]:
    import faust

    app = faust.App(
        f"peer-{uuid.uuid4().hex}",
        broker=f"kafka://{args.bootstrap}",
        store="memory://",
        value_serializer="raw",
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        stream_wait_empty=False,
    )
    return app, app.topic(*args.topics.split(","), value_type=bytes, value_serializer="raw")


def faust_one(args: argparse.Namespace, meter: Meter) -> None:
    model, (app, topic) = HuggingFace(args.model), faust_app(args)
    output = app.topic(OUTPUT, value_serializer="raw")

    @app.agent(topic)
    async def score(stream: Any) -> None:
        async for value in stream:
            await output.send(value=record(value, model.encode([text_of(value)])[0]))
            meter.done(1)

    app.finalize()
    asyncio.run(_serve(app))


def faust_take(args: argparse.Namespace, meter: Meter) -> None:
    model, (app, topic) = HuggingFace(args.model), faust_app(args)
    output = app.topic(OUTPUT, value_serializer="raw")

    @app.agent(topic)
    async def score(stream: Any) -> None:
        async for values in stream.take(TAKE, within=0.2):
            rows = model.encode([text_of(value) for value in values])
            for value, row in zip(values, rows, strict=True):
                await output.send(value=record(value, row))
            meter.done(len(values))

    app.finalize()
    asyncio.run(_serve(app))


async def _serve(app: Any) -> None:
    await app.start()
    await asyncio.Event().wait()  # the meter ends the process


def quixstreams(args: argparse.Namespace, meter: Meter) -> None:
    from quixstreams import Application
    from quixstreams.models.topics import TopicAdmin, TopicConfig, TopicManager
    from quixstreams.sinks.base import BaseSink

    model, writer, group = HuggingFace(args.model), producer(args), f"peer-{uuid.uuid4().hex}"

    class Admin(TopicAdmin):
        """Partition counts from metadata: the in-process broker has no controller to ask for settings."""

        def inspect_topics(self, topic_names: list[str], timeout: float = 30) -> dict[str, Any]:
            found = self.list_topics(timeout=timeout)
            return {name: TopicConfig(len(found[name].partitions), 1) for name in topic_names}

    class Encode(BaseSink):
        """Gathers over all partitions until the checkpoint: the library's batching sink would write each apart."""

        def __init__(self) -> None:
            super().__init__()
            self._values: list[bytes] = []

        def add(self, value: bytes, **_: Any) -> None:
            self._values.append(value)

        def flush(self) -> None:
            values, self._values = self._values, []
            if not values:
                return
            rows = model.encode([text_of(value) for value in values])
            for value, row in zip(values, rows, strict=True):
                writer.produce(OUTPUT, record(value, row))
            writer.poll(0)
            meter.done(len(values))

        def on_paused(self) -> None:
            self._values.clear()

    app = Application(
        broker_address=args.bootstrap,
        consumer_group=group,
        topic_manager=TopicManager(Admin(args.bootstrap), group, auto_create_topics=False),
        auto_offset_reset="earliest",
        auto_create_topics=False,
        commit_every=TAKE,
        commit_interval=0.5,
        use_changelog_topics=False,
        state_dir=tempfile.mkdtemp(),
    )
    sink = Encode()
    for name in args.topics.split(","):
        app.dataframe(app.topic(name, value_deserializer="bytes", key_deserializer="bytes")).sink(sink)
    app.run()


def infinity(args: argparse.Namespace, meter: Meter) -> None:
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(
            model_name_or_path=args.model,
            engine="torch",
            device="cpu",
            bettertransformer=False,
            compile=False,
            model_warmup=False,
            dtype=json.loads((Path(args.model) / "config.json").read_text())["dtype"],
            batch_size=BATCH,
        )
    )

    async def encode(texts: list[str]) -> list[Any]:
        rows, _ = await engine.embed(sentences=texts)
        return list(rows)

    async def main() -> None:
        async with engine:
            await _pump(args, meter, encode)

    asyncio.run(main())


def litserve(args: argparse.Namespace, meter: Meter) -> None:
    import socket
    import subprocess

    import aiohttp  # httpx takes seconds for hundreds of requests under way

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("peers_litserve.py")), args.model]
    command += [str(args.threads), str(port)]
    # No pipe of ours: whoever reads it would wait for the server's end. bench_peers.py ends it with our process group.
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def main() -> None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)  # the server closes after five seconds
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as client:
            while True:
                try:
                    async with client.get("/health") as answer:
                        if answer.status == 200:
                            break
                except aiohttp.ClientError:
                    if server.poll() is not None:
                        raise
                await asyncio.sleep(0.5)

            async def one(text: str) -> Any:
                async with client.post("/predict", json={"text": text}, raise_for_status=True) as answer:
                    return (await answer.json())["row"]

            async def encode(texts: list[str]) -> list[Any]:
                return list(await asyncio.gather(*map(one, texts)))

            await _pump(args, meter, encode)

    asyncio.run(main())


async def _pump(args: argparse.Namespace, meter: Meter, encode: Any) -> None:
    """Two batches under way at any time: while one is encoded the next is read and the one before written."""
    reader, writer, loop = consumer(args), producer(args), asyncio.get_running_loop()

    async def one() -> None:
        while True:
            messages = await loop.run_in_executor(None, reader.consume, TAKE, 0.2)
            values = [message.value() for message in messages if message.error() is None]
            if not values:
                continue
            rows = await encode([text_of(value) for value in values])
            for value, row in zip(values, rows, strict=True):
                writer.produce(OUTPUT, record(value, row))
            writer.poll(0)
            meter.done(len(values))

    await asyncio.gather(one(), one())


def offline(args: argparse.Namespace, meter: Meter) -> None:
    """No stream at all: texts in memory, sorted by length over all of them; their batches in random order."""
    model, reader, texts = HuggingFace(args.model), consumer(args), []
    while len(texts) < args.events:
        texts += [text_of(m.value()) for m in reader.consume(args.events - len(texts), 1.0) if m.error() is None]
    texts.sort(key=len)
    batches = [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]
    random.Random(1).shuffle(batches)
    for batch in batches:
        model.encode(batch)
        meter.done(len(batch))


CONTENDERS = {f.__name__: f for f in (faust_one, faust_take, quixstreams, infinity, litserve, offline)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--bootstrap")
    parser.add_argument("--topics", default="")
    parser.add_argument("--model", required=True)
    parser.add_argument("--events", type=int, default=1500, help="how many the topics hold")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    import torch

    torch.set_num_threads(args.threads)
    CONTENDERS[args.contender](args, Meter(args.events))


if __name__ == "__main__":
    main()
