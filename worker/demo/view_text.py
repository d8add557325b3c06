"""Single things as the demo's screen shows them: a score beside its event, numbers as bars."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from rich.text import Text

from schemas.scores import CtrScore, IntentScore, SentimentScore
from worker.demo.meter import Sample

_MOODS: Final = {"negative": "red", "neutral": "yellow", "positive": "green"}
_LEVELS: Final = "▁▂▃▄▅▆▇█"


def sample_row(sample: Sample) -> tuple[Text, Text]:
    """What was found, and of what."""
    score, event = sample.score, sample.sent.event
    if isinstance(score, SentimentScore):
        probability = max(score.p_negative, score.p_neutral, score.p_positive)
        found = Text(f"{score.sentiment} {probability:.2f}", _MOODS[score.sentiment])
        return found.append(f"  {score.category}", "dim"), plain(getattr(event, "text", ""))
    if isinstance(score, IntentScore):
        found = Text(f"{score.intent}", "yellow" if score.out_of_scope else "cyan")
        return found, plain(getattr(event, "text", "")).append(f"  → {score.queue} ({score.confidence:.2f})", "dim")
    return _click_told(sample, score)


def _click_told(sample: Sample, score: CtrScore) -> tuple[Text, Text]:
    found = Text(f"{score.action} ", "magenta")
    if score.candidates:
        best = score.candidates[0]
        titles = {each.item_id: each.title for each in getattr(sample.sent.event, "candidates", [])}
        query = plain(getattr(sample.sent.event, "query", ""))
        return found.append(f"best {best.p_click:.2f}"), query.append(f"  → {titles.get(best.item_id, '')}", "dim")
    if score.p_click is not None and score.p_purchase is not None:
        found.append(f"ctr {score.p_click:.2f}")
    about = plain(getattr(sample.sent.event, "title", ""))
    if score.p_purchase is not None:
        about.append(f"  buys {score.p_purchase:.3f}", "dim")
    return found, about.append(f"  {score.user_id} {score.state}", "dim")


def plain(text: str) -> Text:
    """Text as it is, but for characters that would steer the terminal."""
    return Text("".join(char if char.isprintable() else " " for char in text))


def spark(values: npt.ArrayLike) -> str:
    """Numbers as a row of bars, lowest to highest."""
    row = np.asarray(values, float)
    low, high = float(row.min()), float(row.max())
    if high <= low:
        return _LEVELS[0] * len(row)
    return "".join(_LEVELS[round(float(v - low) / (high - low) * (len(_LEVELS) - 1))] for v in row)
