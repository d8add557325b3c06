"""Copies and one author's bursts are set apart; many voices saying alike are not."""

from __future__ import annotations

import unicodedata

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.scores import Alert, Opinion
from tests.opinions import MINUTE_MS, START_MS, burst_on_lamp, detect, opinion, stream
from worker.alerts.voices import COPIES_COUNTED, MEMORY_MINUTES, OPINIONS_COUNTED, REMEMBERED, Voices
from worker.privacy.fingerprint import MAX_CHARS, MIN_CHARS, NEAR_BITS, author_of, fingerprint, fingerprints

ZH = "物流太慢了，等了一个星期才到，包装也破了，客服一直不回复，非常失望，不会再买了。"
EN = "The parcel came two weeks late, the box was crushed and nobody answers the phone. Never again."


def apart(one: str, other: str) -> int:
    return (int(fingerprint(one), 16) ^ int(fingerprint(other), 16)).bit_count()


@pytest.mark.parametrize(
    ("text", "copy"),
    [
        (ZH, ZH + "！！！"),
        (ZH, "转发：" + ZH),
        (ZH, ZH.replace("星期", "礼拜")),
        (ZH, ZH[:-4]),
        (EN, EN.upper() + " 😡😡"),
        (EN, "RT @bob: " + EN),
        (EN, EN.replace("two weeks", "14 days")),
        (EN, EN.replace(" ", "  ").replace(".", "…")),
    ],
)
def test_a_copy_is_near_its_original(text: str, copy: str) -> None:
    assert apart(text, copy) <= NEAR_BITS


def test_texts_of_their_own_are_far_apart() -> None:
    others = [
        "质量很差，用了两天就坏了，退款也不给退，差评。",
        "The screen has a scratch and the battery lasts an hour at most.",
        "颜色和图片完全不一样，感觉被骗了，客服态度也很差。",
        "Sound is fine but the strap broke the first time I lifted it.",
    ]
    assert min(apart(one, other) for one in others for other in [ZH, EN, *others] if one != other) > NEAR_BITS


@given(text=st.text(max_size=MIN_CHARS - 1))
def test_what_many_say_has_no_fingerprint(text: str) -> None:
    assert fingerprint(text.replace("ﷺ", "")[: MIN_CHARS - 1]) == "" or len(fingerprint(text)) == 16
    assert fingerprint("很好，很喜欢！") == ""


@given(texts=st.lists(st.text(), max_size=5), long=st.integers(0, 700))
def test_any_text_has_one_or_none_whatever_stands_beside_it(texts: list[str], long: int) -> None:
    texts.insert(len(texts) // 2, "".join(chr(0x4E00 + n * n % 977) for n in range(long)))
    found = fingerprints(texts)
    assert {len(each) for each in found} <= {0, 16}
    assert found == [simhash(text) for text in texts]


def simhash(text: str) -> str:
    """The same, bit by bit."""
    plain = "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text[:MAX_CHARS]).casefold()))
    if len(plain) < MIN_CHARS:
        return ""
    grams = [ord(a) | ord(b) << 21 | ord(c) << 42 for a, b, c in zip(plain, plain[1:], plain[2:], strict=False)]
    hashes = [splitmix64(gram).to_bytes(8, "little") for gram in grams]
    votes = [2 * sum(each[i // 8] >> 7 - i % 8 & 1 for each in hashes) > len(grams) for i in range(64)]
    return bytes(sum(votes[8 * i + j] << 7 - j for j in range(8)) for i in range(8)).hex()


def splitmix64(word: int) -> int:
    word = word * 0x9E3779B97F4A7C15 % 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


def test_authors_are_pseudonyms() -> None:
    assert author_of(None) == ""
    assert "alice" not in author_of("alice")
    assert author_of("alice") == author_of("alice") != author_of("bob")


def test_a_text_counts_so_often_and_no_more_until_it_is_forgotten() -> None:
    voices = Voices()
    text = fingerprint(EN)
    assert [voices.counts(text, f"u-{n}", 0) for n in range(9)] == [n < COPIES_COUNTED for n in range(9)]
    assert not voices.counts(fingerprint("RT: " + EN), "u-x", 1)
    assert voices.counts(fingerprint(ZH), "u-x", 1)
    assert voices.counts(text, "u-y", 2 * MEMORY_MINUTES)


def test_an_author_counts_so_often() -> None:
    voices = Voices()
    counted = [voices.counts(fingerprint(f"{EN} {n * n} {ZH[n:]}"[n * 3 :]), "u-one", 0) for n in range(6)]
    assert sum(counted) <= OPINIONS_COUNTED
    assert voices.counts("", "u-two", 0)


def test_without_text_and_author_everything_counts() -> None:
    voices = Voices()
    assert all(voices.counts("", "", 0) for _ in range(100))


@settings(max_examples=20)
@given(texts=st.lists(st.integers(0, 2**64 - 1), min_size=REMEMBERED, max_size=3 * REMEMBERED), step=st.integers(0, 5))
def test_what_is_remembered_is_bounded(texts: list[int], step: int) -> None:
    voices = Voices()
    for number, text in enumerate(texts):
        voices.counts(f"{text:016x}", f"u-{text}", number * step)
    assert len(voices.texts) <= REMEMBERED
    assert len(voices.authors) <= REMEMBERED


@given(seen=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 200)), max_size=60), cut=st.integers(0, 60))
def test_bytes_between_two_opinions_change_nothing(seen: list[tuple[int, int]], cut: int) -> None:
    whole, stopped = Voices(), Voices()
    for number, (who, minute) in enumerate(sorted(seen, key=lambda each: each[1])):
        if number == cut:
            stopped = msgspec.msgpack.decode(msgspec.msgpack.encode(stopped), type=Voices)
        text = f"{who * 0x1111111111111111:016x}"
        assert whole.counts(text, f"u-{who}", minute) == stopped.counts(text, f"u-{who}", minute)
    assert stopped == whole


def test_even_a_flooded_subject_is_small() -> None:
    voices = Voices()
    for number in range(1000):
        voices.counts(f"{(number * 0x9E3779B97F4A7C15) % 2**64:016x}", f"u-{number}", 29_000_000 + number // 50)
    assert len(msgspec.msgpack.encode(voices)) < 2 * REMEMBERED * 15


def angry(n: int, at_ms: int, text_print: str, author: str) -> Opinion:
    plain = opinion("item:lamp", at_ms, 0.95, 100_000 + n)
    return Opinion(
        **{name: getattr(plain, name) for name in plain.__struct_fields__}
        | {"text_print": text_print, "author": author}
    )


def storm(text_print: object, author: object) -> list[Alert]:
    """Sixty negatives a minute on the lamp for five minutes; texts and authors by number."""
    calm = stream(60, 10, lambda _s, _m: 0.15, subjects=("item:lamp",))
    cut = 45 * 10
    extra = [
        angry(n, START_MS + 45 * MINUTE_MS + n * 1000, text_print(n), author(n))  # type: ignore[operator]
        for n in range(300)
    ]
    mixed = sorted([*calm[cut:], *extra], key=lambda each: each.event_time_ms)
    # One source partition each, so that their offsets rise.
    return detect([*calm[:cut], *(_renumbered(n, each) for n, each in enumerate(mixed))])


def _renumbered(n: int, each: Opinion) -> Opinion:
    fields = {name: getattr(each, name) for name in each.__struct_fields__}
    fields["source"] = type(each.source)("events.review", 1, n)
    return Opinion(**fields)


def test_one_viral_text_raises_no_alarm_and_many_texts_do() -> None:
    viral = fingerprint(EN)
    assert storm(lambda _n: viral, lambda n: f"u-{n}") == []
    assert storm(lambda n: f"{(n * 0x9E3779B97F4A7C15) % 2**64:016x}", lambda n: f"u-{n}") != []


def test_one_author_raises_no_alarm() -> None:
    assert storm(lambda n: f"{(n * 0x9E3779B97F4A7C15) % 2**64:016x}", lambda _n: "u-bot") == []


def test_an_alert_tells_what_was_set_apart() -> None:
    told = [
        _renumbered(n, each)
        for n, each in enumerate(
            sorted(
                [
                    *stream(60, 10, burst_on_lamp, subjects=("item:lamp",)),
                    *(angry(n, START_MS + 41 * MINUTE_MS + n * 500, fingerprint(EN), f"u-{n}") for n in range(40)),
                ],
                key=lambda each: each.event_time_ms,
            )
        )
    ]
    assert max(alert.set_apart for alert in detect(told)) >= 30
