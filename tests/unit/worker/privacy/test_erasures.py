"""Who is to be forgotten and what of it: cut-offs, whose a broken record is, and what a receipt may say of a topic."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.erasures import Erasure, decode_erasure, encode_erasure
from schemas.folds import FormatError
from schemas.shards import shard_of
from schemas.topics import DAY_MS, TOPICS
from worker.privacy import erasures as module
from worker.privacy.erasures import Erasures
from worker.privacy.person import names_somebody, people_of, time_of
from worker.tools.receipt import SLACK_MS, topic_receipt

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def test_what_was_up_to_the_cut_off_is_covered_and_nothing_else() -> None:
    erasures = Erasures()
    erasures.index(1)
    assert not erasures
    assert not erasures.any_of(["anna"])
    erasures.add("anna", 100, 0)
    assert [erasures.cover("anna", at) for at in (0, 100, 101)] == [True, True, False]
    assert not erasures.cover("bert", 0)
    assert not erasures.cover(None, 0)
    assert erasures.any_of(["bert", "anna"])
    erasures.add("anna", 50, 1)
    assert erasures.cover("anna", 100), "an earlier cut-off takes nothing back"
    erasures.add("anna", 200, 2)
    erasures.add("carl", 1, 3)
    assert erasures.cover("anna", 200)
    assert erasures.after(0, 2) == {"carl": 3}
    assert list(erasures.after(0, -1).items()) == [("anna", 2), ("carl", 3)]
    erasures.remove("anna")
    erasures.remove("anna")
    assert not erasures.cover("anna", 0)


def test_at_its_bound_it_refuses_rather_than_remember_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ERASURES", 2)
    erasures = Erasures()
    erasures.index(1)
    erasures.add("a", 1, 0)
    erasures.add("b", 1, 1)
    erasures.add("a", 2, 2)
    with pytest.raises(OverflowError):
        erasures.add("c", 1, 3)
    assert erasures.after(0, -1) == {"a": 2, "b": 1}


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans())), st.integers(0, 30), st.integers(-1, 30))
def test_a_shards_erasures_after_an_offset_are_those_that_hashing_all_of_them_finds(
    steps: list[tuple[str, bool]], indexed_at: int, after: int
) -> None:
    erasures, latest = Erasures(), dict[str, int]()
    for offset, (user, gone) in enumerate(steps):
        if offset == indexed_at:
            erasures.index(3)
        latest.pop(user, None)
        if gone:
            erasures.remove(user)
        else:
            erasures.add(user, 1, offset)
            latest[user] = offset
    if indexed_at >= len(steps):
        erasures.index(3)
    for shard in range(3):
        expected = [(user, at) for user, at in latest.items() if at > after and shard_of(user, 3) == shard]
        assert list(erasures.after(shard, after).items()) == expected


def test_each_id_is_hashed_once_however_many_shards_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(module, "shard_of", lambda key, shards: hashed.append(key) or int(key) % shards)
    erasures = Erasures()
    for user in range(100):
        erasures.add(str(user), 1, user)
    assert not hashed, "who asks for no shard needs no hash"
    erasures.index(4)
    for shard in range(4):
        assert erasures.after(shard, 91) == {str(user): user for user in range(92, 100) if user % 4 == shard}
        assert len(erasures.after(shard, -1)) == 25
    assert len(hashed) == 100


@given(IDS, st.integers(0, 2**53))
def test_an_erasure_is_read_back(user_id: str, cutoff_ms: int) -> None:
    erasure = Erasure(user_id=user_id, cutoff_ms=cutoff_ms)
    assert decode_erasure(encode_erasure(erasure)) == erasure


@pytest.mark.parametrize("data", [b"", b"{}", b'{"user_id": "", "cutoff_ms": 1}', b'{"user_id": "a", "cutoff_ms": -1}'])
def test_what_is_no_erasure_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="erasure"):
        decode_erasure(data)


def test_an_erasure_of_the_next_release_is_read() -> None:
    assert decode_erasure(b'{"v": 2, "user_id": "a", "cutoff_ms": 7, "why": "asked"}').cutoff_ms == 7


@settings(max_examples=200)
@given(IDS, st.booleans(), st.integers(0, 10**15))
def test_a_broken_record_names_its_person_however_the_id_is_written(user_id: str, ascii_: bool, at: int) -> None:
    value = json.dumps({"event_time_ms": at, "user_id": user_id, "text": 'a "user_id": "x"'}, ensure_ascii=ascii_)
    for broken in (value.encode(), value[:-1].encode(), value.encode() + b"\xff"):
        assert people_of(None, broken) == {user_id}
        assert time_of(broken) == at
    assert people_of(user_id.encode(), b"not json") == {user_id}


@pytest.mark.parametrize("value", [None, b"", b"\xff\xfe", b'"user_id": 7', b'"user_id": "', b'"user_id": ""'])
def test_what_names_nobody_is_about_nobody(value: bytes | None) -> None:
    assert people_of(None, value) == set()
    assert time_of(value) is None


@pytest.mark.parametrize("number", [b"4711", b" 4711\n", b"4711.0", b"4711.000"])
def test_a_number_is_an_id_too(number: bytes) -> None:
    assert people_of(None, b'{"user_id":' + number + b', "text": "a"}') == {"4711"}
    assert people_of(None, b'{"text": "a", "user_id":' + number + b"}") == {"4711"}


@pytest.mark.parametrize("number", [b"4711", b"4711.5}", b"4711e2}", b"[4711]}", b"4711" * 100 + b"}"])
def test_what_may_be_another_number_is_no_id(number: bytes) -> None:
    assert people_of(None, b'{"user_id":' + number) == set()


@pytest.mark.parametrize(
    ("key", "value", "sure"),
    [
        (None, b'{"user_id": "anna"}', True),
        (b"e", b'{"event_id": "e", "user_id": 7}', True),
        (b"anna", b'{"event_id": "e", "userId": "anna"}', True),
        (b"7", b'{"event_id": 8, "userId": 7}', True),
        (b"e", b'{"event_id": "e", "userId": "anna"}', False),
        (b"8", b'{"event_id": 8, "userId": 7}', False),
        (b"e", b'{"eventId": "e", "userId": "anna"}', False),
        (b"anna", b'{"text": 3}', False),
        (b"anna", b"", False),
        (b"anna", None, False),
        (b"", b'{"event_id": "e"}', False),
        (None, b'{"event_id": "e"}', False),
    ],
)
def test_a_key_is_the_user_only_where_it_is_known_not_to_be_the_event(
    key: bytes | None, value: bytes | None, sure: bool
) -> None:
    assert names_somebody(key, value) is sure


@given(st.binary(max_size=300))
def test_any_bytes_can_be_asked(value: bytes) -> None:
    people_of(value, b'"user_id": "' + value)
    names_somebody(value, b'"event_id": ' + value)
    time_of(b'"event_time_ms":' + value)


NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    ("contract", "settings_", "what", "within_ms"),
    [
        ("events.click", {"retention.ms": str(7 * DAY_MS), "segment.ms": str(DAY_MS)}, "expires", 8 * DAY_MS),
        ("events.click", {"retention.ms": str(7 * DAY_MS)}, "expires", 14 * DAY_MS),
        ("events.click", {"retention.ms": "-1"}, "kept", None),
        ("events.click", {"cleanup.policy": "compact"}, "kept", None),
        ("features.user", {"cleanup.policy": "compact", "max.compaction.lag.ms": "1000"}, "deleted", 1000),
        ("features.user", {"cleanup.policy": "compact", "max.compaction.lag.ms": str(2**63 - 1)}, "deleted", None),
        ("features.user", {"cleanup.policy": "compact"}, "deleted", None),
        ("events.dead", {"cleanup.policy": "compact,delete", "max.compaction.lag.ms": "5"}, "deleted", 5),
        ("erasures", {"cleanup.policy": "compact"}, "kept", None),
        ("folds.item", {"retention.ms": "1"}, "names nobody", None),
    ],
)
def test_a_receipt_promises_what_the_topics_settings_keep(
    contract: str, settings_: dict[str, str], what: str, within_ms: int | None
) -> None:
    receipt = topic_receipt(contract, "shop.x", settings_, NOW_MS)
    assert (receipt.topic, receipt.what) == ("shop.x", what)
    assert receipt.gone_by_ms == (None if within_ms is None else NOW_MS + within_ms + SLACK_MS)


def test_what_is_pending_is_not_called_deleted() -> None:
    assert topic_receipt("features.user", "f", {"cleanup.policy": "compact"}, NOW_MS, pending=True).what == "pending"


def test_every_topic_of_the_contract_has_an_end_or_is_said_to_have_none() -> None:
    receipts = {name: topic_receipt(name, name, topic.config(3), NOW_MS) for name, topic in TOPICS.items()}
    assert {name for name, each in receipts.items() if each.gone_by_ms is None} == {
        *("folds.item", "features.item", "alerts.control", "trends.opinion", "erasures"),
    }
