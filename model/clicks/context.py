"""Context features of the click head: what an event says besides who saw what, named in the head's own settings.

A numeric feature becomes three columns (standardised value, whether it is low, whether it is high: prices and years
bend at their ends), a categorical one is hashed into a few indicator columns. What is absent or of the wrong type reads
as average. A feature with a ``neutral`` value (a position on the page) is fitted as it was and always scored at that
value: where something was shown must not decide what is shown.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.errors import ArtifactError, DataError

Context = Mapping[str, float | str]
Floats = npt.NDArray[np.float32]

LOW, HIGH = 0.1, 0.9
"""Quantiles of the training values below and from which a number counts as low and high."""
KINDS: Final = ("numeric", "categorical")
SAID: Final = ("name", "kind", "buckets", "neutral")
"""What a recipe says of a feature; the rest comes from the training data."""
BUCKETS_MAX: Final = 256
FAR: Final = 1e6
"""Standardised values end here: a number too large for float32 is only far away."""
_YEAR: Final = re.compile(r"\(((?:19|20)\d\d)\)")


@dataclass(frozen=True, slots=True)
class ContextFeature:
    """One feature. ``centre``, ``scale``, ``low`` and ``high`` of a numeric one come from the training data.

    name      key in an event's context
    kind      ``numeric`` or ``categorical``
    buckets   indicator columns of a categorical one; two values may share one
    neutral   the value at which it is always scored; None: scored as it comes
    """

    name: str
    kind: str = "numeric"
    buckets: int = 16
    neutral: float | str | None = None
    centre: float = 0.0
    scale: float = 1.0
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        """Raises DataError for no name, an unknown kind, a useless number of buckets, or a neutral value of another
        type."""
        if not isinstance(self.name, str) or not self.name:
            raise DataError(f"context feature {self.name!r}: the name is a key of the rows' context, text")
        where = f"context feature {self.name!r}"
        if self.kind not in KINDS:
            raise DataError(f"{where}: kind {self.kind!r}; known: {', '.join(KINDS)}")
        if not isinstance(self.buckets, int) or not 1 <= self.buckets <= BUCKETS_MAX:
            raise DataError(f"{where}: {self.buckets} buckets, 1 to {BUCKETS_MAX} are allowed")
        wanted = (int, float) if self.kind == "numeric" else (str,)
        if self.neutral is not None and not isinstance(self.neutral, wanted):
            raise DataError(f"{where}: neutral value {self.neutral!r} is not of kind {self.kind}")

    @classmethod
    def of(cls, content: Any) -> ContextFeature:
        """As a recipe names it. Raises DataError for what is no feature."""
        if not isinstance(content, Mapping) or "name" not in content:
            raise DataError(f"context feature {content!r}: write {{name: …}}, with {', '.join(SAID[1:])} where needed")
        unknown = [key for key in content if key not in SAID]
        if unknown:
            raise DataError(
                f"context feature {content['name']!r}: unknown key {unknown[0]!r}; known: {', '.join(SAID)}"
            )
        return cls(**content)

    @property
    def width(self) -> int:
        """Number of its columns."""
        return 3 if self.kind == "numeric" else self.buckets

    def fill(self, columns: Floats, values: Sequence[Any]) -> None:
        """Write its columns [n, width], which are zero, for the values of n events."""
        if self.kind == "categorical":
            for i, value in enumerate(values):
                if value is not None:
                    columns[i, zlib.crc32(f"{self.name}={_category(value)}".encode()) % self.buckets] = 1
            return
        number = np.array([_number(value) for value in values], np.float64)
        known = ~np.isnan(number)
        columns[:, 0] = np.clip(np.where(known, (number - self.centre) / self.scale, 0), -FAR, FAR)
        columns[:, 1], columns[:, 2] = known & (number < self.low), known & (number >= self.high)

    def fitted(self, contexts: Sequence[Context]) -> ContextFeature:
        """With centre, scale and ends of what the contexts hold. Raises DataError when none holds it."""
        values = [context.get(self.name) for context in contexts]
        if self.kind == "categorical":
            if all(value is None for value in values):
                raise DataError(f"context feature {self.name!r}: no training row has it")
            return self
        number = np.array([_number(value) for value in values], np.float64)
        number = number[~np.isnan(number)]
        if not len(number):
            raise DataError(f"context feature {self.name!r}: no training row has a number for it")
        low, high = np.quantile(number, (LOW, HIGH))
        scale = float(number.std())
        return replace(
            self, centre=float(number.mean()), scale=scale if scale > 1e-6 else 1.0, low=float(low), high=float(high)
        )


ContextSpec = tuple[ContextFeature, ...]


def context_columns(spec: ContextSpec, contexts: Sequence[Context] | None, n: int, *, fitting: bool = False) -> Floats:
    """Columns of ``n`` events, float32 [n, sum of widths]; ``contexts`` None: nothing is known of any."""
    out = np.zeros((n, sum(feature.width for feature in spec)), np.float32)
    start = 0
    for feature in spec:
        columns = out[:, start : start + feature.width]
        if feature.neutral is not None and not fitting:
            feature.fill(columns, [feature.neutral] * n)
        elif contexts is not None:
            feature.fill(columns, [context.get(feature.name) for context in contexts])
        start += feature.width
    return out


def title_context(title: str) -> dict[str, float | str]:
    """What a title says in so many words: ``year`` of "Casablanca (1942)". An event's own context goes before it."""
    years = _YEAR.findall(title)
    return {"year": float(years[-1])} if years else {}


def spec_tensor(spec: ContextSpec) -> Floats:
    """The settings as an artifact carries them: JSON, one byte a float32."""
    text = json.dumps([asdict(feature) for feature in spec])
    return np.frombuffer(text.encode(), np.uint8).astype(np.float32)


def read_spec(tensor: npt.NDArray[Any]) -> ContextSpec:
    """Settings from `spec_tensor`. Raises ArtifactError when they are none."""
    try:
        found = json.loads(np.asarray(tensor).astype(np.uint8).tobytes())
        return tuple(ContextFeature(**feature) for feature in found)
    except (ValueError, TypeError, DataError) as error:
        raise ArtifactError(f"the click head's context features cannot be read ({error}); fit it again") from error


def _category(value: Any) -> str:
    """As it is hashed: a number as the float that it is in an event, whether the row says 13 or 13.0."""
    if isinstance(value, int):
        with contextlib.suppress(OverflowError):
            return str(float(value))
    return str(value)


def _number(value: Any) -> float:
    """NaN for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan
