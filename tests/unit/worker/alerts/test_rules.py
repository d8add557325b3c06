"""The rules file: checked whole, told by line and key, read again when it changes, kept when the new one is broken."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.alerts.rules import KINDS, RULES_MAX, SIZE_MAX, RulesFile, parse, shipped
from worker.errors import ConfigError

ONE = """\
rules:
  - name: loud
    metric: negative_share
    threshold: 4
    subjects: ["item:*", "brand:Acme"]
"""


def test_the_shipped_rules_cover_every_kind() -> None:
    assert {rule.kind for rule in shipped().rules} == set(KINDS.values())
    assert {rule.metric for rule in shipped().rules} == set(KINDS)


def test_a_name_with_brackets_is_itself_too() -> None:
    book = parse("rules: [{name: one, metric: negative_share, threshold: 4, subjects: ['category:[促销]水壶']}]", "f")
    assert book.match("category:[促销]水壶").surge
    assert book.match("category:促水壶").surge, "brackets are a class, too"
    assert not book.match("category:水壶").surge


def test_patterns_say_which_subjects_a_rule_is_for() -> None:
    book = parse(ONE, "mine.yaml")
    assert [rule.name for rule in book.match("item:lamp").surge] == ["loud"]
    assert [rule.name for rule in book.match("brand:Acme").surge] == ["loud"]
    assert book.match("brand:Other").surge == ()
    assert book.match("brand:Other").scales == ()


def test_stretches_grow_to_the_window_and_end_with_it() -> None:
    matched = parse(ONE + "    window_minutes: 9\n", "mine.yaml").match("item:lamp")
    assert [i + 1 for i, rules in enumerate(matched.scales) if rules] == [1, 2, 3, 5, 8, 9]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("rules:\n  - name: a\n   metric: b\n", 3, "YAML"),
        (ONE + "    treshold: 3\n", 6, "treshold"),
        (ONE.replace("negative_share", "positive_share"), 3, "positive_share"),
        (ONE.replace("threshold: 4", "threshold: many"), 4, "threshold"),
        (ONE.replace("threshold: 4", "threshold: -1"), 4, "threshold"),
        (ONE + "    window_minutes: 31\n", 6, "window_minutes"),
        (ONE + "    min_lift: 2\n", 6, "min_lift"),
        (ONE + "    severity: dire\n", 6, "dire"),
        (ONE.replace("name: loud", 'name: "two words"'), 2, "name"),
        (ONE + ONE.removeprefix("rules:\n"), 6, "second rule named loud"),
        (ONE + "    resolve: 5\n", 2, "resolve"),
        (ONE + "    resolve: 0\n", 6, "resolve"),
        (ONE + ONE.replace("loud", "other"), 6, "a second `rules`"),
        (ONE + "    threshold: 5\n", 6, "a second `threshold`"),
        ("rules:\n  - metric: dropout\n    threshold: 3\n", 2, "name"),
    ],
)
def test_what_is_wrong_is_told_by_file_line_and_key(text: str, line: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse(text, "mine.yaml")
    assert str(caught.value).startswith(f"mine.yaml, line {line}: ")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "rules: []", "rules: {a: 1}", "rule: []", "rules:\n- 3\n", "a: 1\nrules: []", "!!set {rules}"),
        *("[" * 5000, "rules: 2024-13-45", "rules: !!int x", "<<: {rules: [1, 2]}", "rules: &a [*a]"),
    ],
)
def test_other_documents_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        parse(text, "mine.yaml")


def test_the_number_of_rules_and_the_size_of_the_file_are_bounded(tmp_path: Path) -> None:
    many = "rules:\n" + "".join(f"  - {{name: r{n}, metric: dropout, threshold: 50}}\n" for n in range(RULES_MAX + 1))
    with pytest.raises(ConfigError, match=str(RULES_MAX)):
        parse(many, "mine.yaml")
    file = tmp_path / "rules.yaml"
    file.write_text(ONE + "#" * SIZE_MAX)
    with pytest.raises(ConfigError, match="bytes"):
        RulesFile(str(file))


def test_a_missing_file_is_an_error_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"/nowhere/rules\.yaml"):
        RulesFile("/nowhere/rules.yaml")


def test_a_changed_file_is_read_again_once(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(ONE)
    rules = RulesFile(str(file))
    assert rules.changed() is None
    file.write_text(ONE.replace("threshold: 4", "threshold: 5"))
    book = rules.changed()
    assert book is not None
    assert book.rules[0].threshold == 5
    assert rules.book is book
    assert rules.changed() is None


@settings(max_examples=200, deadline=None)
@given(
    at=st.integers(0, len(ONE)),
    cut=st.integers(0, 40),
    put=st.text(" \n:-[]{}&*!<|>#'\"%@`,?.0aerlsu~", max_size=20) | st.sampled_from(["rules:\n", "<<: ", "2024-13-45"]),
)
def test_no_file_raises_another_error(at: int, cut: int, put: str) -> None:
    with suppress(ConfigError):
        parse(ONE[:at] + put + ONE[at + cut :], "mine.yaml")


def test_a_broken_file_keeps_the_old_rules_and_is_told_once_for_each_content(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(ONE)
    rules = RulesFile(str(file))
    old = rules.book
    with structlog.testing.capture_logs() as logs:
        file.write_text(ONE.replace("threshold: 4", "threshold: x"))
        assert [rules.changed() for _ in range(3)] == [None] * 3
        file.unlink()
        assert [rules.changed() for _ in range(3)] == [None] * 3
        file.write_bytes(b"\xff\xfe")
        assert rules.changed() is None
        file.write_text(ONE + ONE)
        assert rules.changed() is None
    assert rules.book is old
    assert [entry["log_level"] for entry in logs] == ["error"] * 4
    assert "line 4" in logs[0]["reason"]
    file.write_text(ONE.replace("threshold: 4", "threshold: 6"))
    assert rules.changed() is not None
