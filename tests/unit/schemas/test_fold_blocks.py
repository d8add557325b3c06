"""No fold block is larger than its topic takes, however long the ids are."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.folds import MAX_BLOCK_FOLDS, decode_block
from schemas.scores import SourcePosition
from schemas.topics import FOLDS_USER, TOPICS
from worker.scoring.emit import Fold, FoldBuffer

VECTOR = np.full(64, 0.125, np.float16)
FRAME_BYTES = 1024
"""What Kafka puts around a record, and more."""
IDS = ["u", "u" * 36, "u" * 200, "u" * 1024, "é" * 512, "茶" * 341, "\U0001f375" * 256]
TOPIC_IDS = {name * 83: f"{name}-id" * 6 for name in ("one", "two", "six")}
"""Names as long as Kafka takes, and ids longer than it gives."""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(IDS), st.integers(1, 1100)), min_size=1, max_size=4))
def test_no_block_exceeds_what_its_topic_takes(runs: list[tuple[str, int]]) -> None:
    keys = [key for key, times in runs for _ in range(times)]
    buffer = FoldBuffer("s" * 100, 1, TOPIC_IDS)
    source = next(iter(TOPIC_IDS))
    buffer.add(
        Fold("user", key, SourcePosition(source, 3, n), 1000 + n, (1, 0, 1, 0, 0), VECTOR) for n, key in enumerate(keys)
    )
    values = [message.value or b"" for message in buffer.blocks()]
    assert max(map(len, values)) + FRAME_BYTES <= TOPICS[FOLDS_USER].max_message_bytes
    blocks = [decode_block(value) for value in values]
    assert [key for block in blocks for key in block.keys] == keys
    assert [n for block in blocks for n in block.offset.tolist()] == list(range(len(keys)))
    assert all(0 < len(block) <= MAX_BLOCK_FOLDS for block in blocks)


def test_ids_as_people_have_them_cut_no_block_short() -> None:
    buffer = FoldBuffer("space", 1, {"shop.clicks": "id"})
    buffer.add(
        Fold("user", "u" * 200, SourcePosition("shop.clicks", 3, n), 1000, (1, 0, 1, 0, 0), VECTOR)
        for n in range(MAX_BLOCK_FOLDS)
    )
    assert len(buffer.blocks()) == 1
