"""The shard of an id is what Kafka's own murmur2 says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.shards import murmur2, shard_of

# org.apache.kafka.common.utils.UtilsTest.testMurmur2
KAFKA_VECTORS = [
    (b"21", -973932308),
    (b"foobar", -790332482),
    (b"a-little-bit-long-string", -985981536),
    (b"a-little-bit-longer-string", -1486304829),
    (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    (b"abc", 479470107),
]


@pytest.mark.parametrize(("data", "signed"), KAFKA_VECTORS)
def test_murmur2_agrees_with_kafka(data: bytes, signed: int) -> None:
    assert murmur2(data) == signed & 0xFFFFFFFF


@given(st.text(), st.integers(1, 1000))
def test_a_shard_is_in_range_and_positive_as_kafkas_is(key: str, shards: int) -> None:
    assert shard_of(key, shards) == (murmur2(key.encode()) & 0x7FFFFFFF) % shards
    assert 0 <= shard_of(key, shards) < shards
