"""The rules of alerts: one YAML file, checked whole, read again when it changes.

`parse` is pure: text in, rules out, or a `ConfigError` that names file, line and key. `RulesFile` is the edge: it looks
at the file's content when asked, and where the new content is broken the old rules stay in force.
"""

from __future__ import annotations

import re
from fnmatch import translate
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import structlog

from worker.errors import ConfigError
from worker.yaml_file import line_of, pairs_of, read_yaml, refusal

SHIPPED: Final = Path(__file__).with_name("rules.yaml")
WINDOW_MINUTES_MAX: Final = 30
SCALES: Final = (1, 2, 3, 5, 8, 12, 20)
RULES_MAX: Final = 100
SIZE_MAX: Final = 256 * 1024

Metric = Literal["negative_volume", "negative_share", "slow_burn", "dropout"]
Kind = Literal["surge", "burn", "dropout"]
KINDS: Final[dict[Metric, Kind]] = {
    "negative_volume": "surge",
    "negative_share": "surge",
    "slow_burn": "burn",
    "dropout": "dropout",
}
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Count = Annotated[int, msgspec.Meta(gt=0)]

_log = structlog.get_logger(__name__)


class Rule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One rule; what its fields mean is at the head of ``worker/alerts/rules.yaml``."""

    name: _Name
    metric: Metric
    threshold: _Positive
    subjects: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ("*",)
    window_minutes: Annotated[int, msgspec.Meta(ge=1, le=WINDOW_MINUTES_MAX)] = 5
    min_volume: _Count = 10
    min_lift: _Share = 0.1
    resolve: _Positive = 1.5  # what is over scores 0, which must be below
    cooldown_minutes: Annotated[int, msgspec.Meta(ge=0)] = 10
    severity: Literal["warning", "critical"] = "warning"
    sinks: tuple[_Name, ...] = ()

    @property
    def scales(self) -> frozenset[int]:
        """Minutes at which a surge is looked for, up to the window."""
        return frozenset(each for each in SCALES if each <= self.window_minutes)

    @property
    def kind(self) -> Kind:
        """Rules of one kind share one alert a subject."""
        return KINDS[self.metric]


class Matched(msgspec.Struct, frozen=True):
    """The rules of one subject, by kind, in the file's order. ``scales``: the surge rules that look at a stretch of
    one, two, three ... minutes, up to the longest window."""

    surge: tuple[Rule, ...] = ()
    burn: tuple[Rule, ...] = ()
    dropout: tuple[Rule, ...] = ()
    scales: tuple[tuple[Rule, ...], ...] = ()

    def named(self, kind: Kind, name: str) -> Rule | None:
        """The rule of that kind and name, if it is still in force."""
        rules: tuple[Rule, ...] = getattr(self, kind)
        return next((rule for rule in rules if rule.name == name), None)


class RuleBook(msgspec.Struct, frozen=True):
    """All rules in force. ``version``: a hash of the text they came from."""

    rules: tuple[Rule, ...]
    version: str

    def match(self, subject: str) -> Matched:
        """Rules whose patterns fit ``level:name``."""
        return _matched(tuple(rule for rule in self.rules if any(_pattern(p).match(subject) for p in rule.subjects)))


@lru_cache(maxsize=1024)
def _matched(rules: tuple[Rule, ...]) -> Matched:
    by_kind = {kind: tuple(rule for rule in rules if rule.kind == kind) for kind in ("surge", "burn", "dropout")}
    surge = by_kind["surge"]
    longest = max((rule.window_minutes for rule in surge), default=0)
    scales = tuple(
        tuple(rule for rule in surge if minutes == rule.window_minutes or minutes in rule.scales)
        for minutes in range(1, longest + 1)
    )
    return Matched(**by_kind, scales=scales)


@lru_cache(maxsize=4096)
def _pattern(glob: str) -> re.Pattern[str]:
    """A name with brackets is itself too."""
    return re.compile(f"{re.escape(glob)}\\Z|{translate(glob)}")


def parse(text: str, where: str) -> RuleBook:
    """Rules of a YAML text. Raises `ConfigError` naming ``where``, the line and the key that is wrong."""
    node, tree = read_yaml(text, where)
    pairs = pairs_of(node)
    found = tree.get("rules") if isinstance(tree, dict) and [key.value for key, _ in pairs] == ["rules"] else None
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{where}: expected one key, `rules`, with a list of rules")
    if len(found) > RULES_MAX:
        raise ConfigError(f"{where}: {len(found)} rules, at most {RULES_MAX} are allowed")
    rules: list[Rule] = []
    for item, raw in zip(pairs[0][1].value, found, strict=True):
        try:
            rule = msgspec.convert(raw, Rule)
        except msgspec.ValidationError as error:
            raise refusal(error, item, where) from error
        if any(rule.name == other.name for other in rules):
            raise ConfigError(f"{where}, line {line_of(item)}: a second rule named {rule.name}")
        if rule.resolve >= rule.threshold:
            raise ConfigError(
                f"{where}, line {line_of(item)}: rule {rule.name}: resolve ({rule.resolve:g}) must be"
                f" below threshold ({rule.threshold:g})"
            )
        rules.append(rule)
    return RuleBook(tuple(rules), _version(text))


class RulesFile:
    """The file rules come from; ``''`` is the shipped one. Raises `ConfigError` where the first reading fails."""

    def __init__(self, path: str) -> None:
        self.path = Path(path) if path else SHIPPED
        self.book = parse(self._read(), str(self.path))
        self._refused = ""

    def _read(self) -> str:
        try:
            data = self.path.read_bytes()
            if len(data) > SIZE_MAX:
                raise ConfigError(f"alert rules {self.path}: {len(data)} bytes, at most {SIZE_MAX} are read")
            return data.decode()
        except OSError as error:
            raise ConfigError(f"alert rules {self.path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"alert rules {self.path}: not UTF-8: {error}") from error

    def changed(self) -> RuleBook | None:
        """The new rules, where the file holds others than those in force. A broken file is told once for each content,
        and changes nothing."""
        try:
            text = self._read()
        except ConfigError as error:
            self._refuse(str(error), error)
            return None
        version = _version(text)
        if version == self.book.version:
            self._refused = ""
            return None
        if version == self._refused:
            return None
        try:
            self.book = parse(text, str(self.path))
        except ConfigError as error:
            self._refuse(version, error)
            return None
        self._refused = ""
        _log.info("alert rules read again", version=self.book.version, rules=len(self.book.rules))
        return self.book

    def _refuse(self, what: str, error: ConfigError) -> None:
        if what != self._refused:
            self._refused = what
            _log.error("alert rules refused, the old ones stay in force", reason=str(error))


def _version(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


@lru_cache(maxsize=1)
def shipped() -> RuleBook:
    """The rules that come with Millrace."""
    return RulesFile("").book
