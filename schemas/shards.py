"""The fold shard of a user or item: murmur2(key) modulo a fixed count, as the Java client partitions.

Client libraries' default partitioners differ (librdkafka: CRC32; Java: murmur2), so it is computed here and
produced to explicitly. The count is the partition count of the folds topics; a different one is refused.
"""

from __future__ import annotations

from functools import lru_cache

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 (org.apache.kafka.common.utils.Utils.murmur2), as an unsigned number."""
    length = len(data)
    h = (_SEED ^ length) & _MASK
    tail = length & ~3
    for i in range(0, tail, 4):
        k = int.from_bytes(data[i : i + 4], "little")
        k = (k * _M) & _MASK
        k ^= k >> 24
        h = ((h * _M) & _MASK) ^ ((k * _M) & _MASK)
    rest = length & 3
    if rest:
        h ^= int.from_bytes(data[tail:], "little")
        h = (h * _M) & _MASK
    h ^= h >> 13
    h = (h * _M) & _MASK
    return h ^ (h >> 15)


@lru_cache(maxsize=1 << 18)
def shard_of(key: str, shards: int) -> int:
    """Shard of a user or item id, in [0, shards). Cached: ids repeat, and the hash loop is slow in Python."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % shards
