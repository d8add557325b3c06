"""An alert in words, Chinese or English, for chats and mail. Pure.

Everything that comes from events (subjects, excerpts, terms) passes `_plain`: one line, no control characters, so that
it can neither break out of a header nor steer a terminal.
"""

from __future__ import annotations

import datetime
from typing import Final, Literal

import msgspec

from schemas.evidence import TellingText
from schemas.scores import Alert

Language = Literal["en", "zh"]
MAX_TITLE_CHARS: Final = 200
MAX_SUBJECT_CHARS: Final = 120
TEXTS_SHOWN: Final = 3
TERMS_SHOWN: Final = 8
RELATED_SHOWN: Final = 5


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be told: an alert, the incident it belongs to, and the subjects that alarm with it."""

    alert: Alert
    incident_id: str
    together: tuple[str, ...] = ()

    @property
    def message_id(self) -> str:
        """The same for every attempt to tell the same thing, so that a receiver can drop repeats."""
        alert = self.alert
        # The severity, because its rise is told at once, beside what else worsened in that minute.
        return f"{alert.alert_id}.{alert.status}.{alert.window_end_ms}.{alert.severity}"


_WORDS: Final[dict[Language, dict[str, str]]] = {
    "en": {
        "opened": "opened",
        "worsening": "worsening",
        "improving": "improving",
        "resolved": "resolved",
        "warning": "Warning",
        "critical": "Critical",
        "title": "{severity}, {status}: {subject}, {share:.0%} negative (expected {expected:.0%})",
        "dropout": "{severity}, {status}: {subject}, opinions stay away ({total} came)",
        "window": "Window: {start} to {end} UTC, alarm since {since}",
        "counts": "Negative: {negative:.1f} of {total} opinions, {usual:.1f} expected (score {score:.1f})",
        "missed": "Opinions: {total} came, about {score:.0f} more were expected",
        "set_apart": "Not counted: {set_apart} opinions (copies of a text, many of one author)",
        "terms": "What they talk about: {terms}",
        "related": "Where: {related}",
        "together": "Same incident: {together}",
        "texts": "What they write:",
        "text": "“{excerpt}” ({p_negative:.0%} negative{copies})",
        "copies": ", {copies} times",
        "foot": "Model {model_version}, rule {rule}. Someone is on it: millrace ack {alert_id}",
        "comma": ", ",
    },
    "zh": {
        "opened": "开始",
        "worsening": "恶化",
        "improving": "好转",
        "resolved": "解除",
        "warning": "警告",
        "critical": "严重",
        "title": "{severity}·{status}：{subject} 负面占 {share:.0%}（预期 {expected:.0%}）",
        "dropout": "{severity}·{status}：{subject} 评论中断（仅 {total} 条）",
        "window": "时段：{start} 至 {end} UTC，始于 {since}",
        "counts": "负面：{total} 条中 {negative:.1f} 条，预期 {usual:.1f} 条（得分 {score:.1f}）",
        "missed": "评论：仅 {total} 条，比预期约少 {score:.0f} 条",
        "set_apart": "未计入：{set_apart} 条（重复文本、同一作者刷屏）",
        "terms": "热词：{terms}",
        "related": "涉及：{related}",
        "together": "同一事件：{together}",
        "texts": "典型评论：",
        "text": "“{excerpt}”（负面 {p_negative:.0%}{copies}）",
        "copies": "，{copies} 次",
        "foot": "模型 {model_version}，规则 {rule}。认领：millrace ack {alert_id}",
        "comma": "、",
    },
}


def title(notice: Notice, language: Language) -> str:
    """One line that tells what, where and how bad; at most `MAX_TITLE_CHARS` characters."""
    alert, words = notice.alert, _WORDS[language]
    line = words["dropout" if alert.metric == "dropout" else "title"].format(
        severity=words[alert.severity],
        status=words[alert.status],
        subject=_plain(alert.subject, MAX_SUBJECT_CHARS),
        share=alert.negative_share,
        expected=alert.expected_share,
        total=alert.total,
    )
    return _plain(line, MAX_TITLE_CHARS)


def lines(notice: Notice, language: Language) -> list[str]:
    """The body: window, counts against expected, terms, affected subjects, most telling texts, model version."""
    alert, words = notice.alert, _WORDS[language]
    found = [
        words["window"].format(
            start=_clock(alert.window_start_ms), end=_clock(alert.window_end_ms), since=_clock(alert.opened_at_ms)
        ),
        _counts(alert, words),
    ]
    if alert.set_apart:
        found.append(words["set_apart"].format(set_apart=alert.set_apart))
    if notice.together:
        together = words["comma"].join(_plain(name, MAX_SUBJECT_CHARS) for name in notice.together[:RELATED_SHOWN])
        found.append(words["together"].format(together=together))
    found += _evidence(alert, words)
    found.append(
        words["foot"].format(model_version=alert.model_version, rule=_plain(alert.rule, 60), alert_id=alert.alert_id)
    )
    return found


def _counts(alert: Alert, words: dict[str, str]) -> str:
    if alert.metric == "dropout":
        return words["missed"].format(total=alert.total, score=alert.score)
    usual = alert.expected_share * alert.total if alert.expected_negative is None else alert.expected_negative
    return words["counts"].format(negative=alert.negative, total=alert.total, usual=usual, score=alert.score)


def _evidence(alert: Alert, words: dict[str, str]) -> list[str]:
    evidence, found = alert.evidence, []
    if evidence is None:
        return []
    if evidence.terms:
        terms = [f"{_plain(each.term, 40)} ({each.window})" for each in evidence.terms[:TERMS_SHOWN]]
        found.append(words["terms"].format(terms=words["comma"].join(terms)))
    if evidence.related:
        related = [
            f"{_plain(each.subject, MAX_SUBJECT_CHARS)} {each.share:.0%}" for each in evidence.related[:RELATED_SHOWN]
        ]
        found.append(words["related"].format(related=words["comma"].join(related)))
    if evidence.texts:
        found += [words["texts"], *(_text(each, words) for each in evidence.texts[:TEXTS_SHOWN])]
    return found


def _text(text: TellingText, words: dict[str, str]) -> str:
    copies = words["copies"].format(copies=text.copies) if text.copies > 1 else ""
    return words["text"].format(excerpt=_plain(text.excerpt, 300), p_negative=text.p_negative, copies=copies)


def _clock(time_ms: int) -> str:
    return datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M")


def _plain(text: str, chars: int) -> str:
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if len(line) <= chars else line[: chars - 1] + "…"
