"""Progressive figures of the click head: every event judged by what was known before its moment.

``click`` over impressions, ``purchase`` over clicks (of impressions that say ``purchased``, or of shop actions), and
``conversion`` over all impressions: p(click) p(purchase | click) against what was clicked and bought.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model.clicks.delay import NO_DELAY, Delay
from model.clicks.fields import Line
from model.clicks.figures import figures, warmth_slices
from model.clicks.head import ClickHead
from model.clicks.log import Log, settled
from model.clicks.rows import PURCHASE_WINDOW_S, click_log, purchase_log
from model.errors import DataError
from model.scoring import Scorer
from model.state import F64, I64
from model.warmth import earlier_events

TASKS: Final = ("click", "purchase", "conversion")
DELAYS_S: Final = (600.0, 3600.0)
"""Seconds after which outcomes are known in the figures beside those at once."""
_NEEDED: Final = {
    "click": "say in `clicked` whether an impression was clicked",
    "purchase": "say in `purchased` whether a clicked impression was bought, or give shop actions of more than a week",
    "conversion": "say in `purchased` whether an impression was bought",
}


class Answered(NamedTuple):
    """Events whose outcome is known: probability, outcome in {0, 1}, user, and how many events of the user came before;
    [n] each."""

    p: F64
    truth: F64
    users: I64
    earlier: I64

    def figures(self) -> dict[str, float]:
        """See `model.clicks.figures.figures`."""
        return figures(self.p, self.truth, self.users)

    def slices(self) -> list[dict[str, Any]]:
        """See `model.clicks.figures.warmth_slices`."""
        return warmth_slices(self.p, self.truth, self.earlier)


@dataclass(frozen=True, slots=True)
class LogSpec:
    """How the logs of a shop are to be read, as `model.clicks.settings.ClickSettings` has it.

    window_s, purchase_window_s  attribution windows, see `click_log`
    negative_rate                share of the unclicked impressions that was kept
    """

    window_s: float | None = None
    purchase_window_s: float = PURCHASE_WINDOW_S
    negative_rate: float = 1.0

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> LogSpec:
        """As an artifact's click section says, or the values of a recipe's; an older artifact does not say all of it,
        and one without a click head nothing."""
        return cls(**{entry.name: section[entry.name] for entry in fields(cls) if entry.name in section})


def read_events(
    task: str, data: Sequence[Line], history: Sequence[Line], spec: LogSpec
) -> tuple[Log, npt.NDArray[np.bool_]]:
    """A log without vectors of the history's and the data's rows, and which of its events [n] are the data's.

    The windows are those of both. The share of unclicked impressions that was kept is the history's alone, as it was
    when the head was fitted: each of its unclicked impressions stands in the states for as many as were shown, while
    of its time the data is every impression, as in service. Figures on data that kept only a part would be of another
    base rate than the shop's, whatever they were weighed by. Raises DataError, also where no event of the data can be
    judged.
    """
    lines = [*history, *data]
    actions = bool(lines) and "action" in lines[0].row
    if actions and task != "purchase":
        raise DataError(
            f"{lines[0]}: a shop action; {task} is measured on impressions, which say whether they were clicked"
        )
    new = np.arange(len(lines)) >= len(history)
    if actions:
        log = purchase_log(lines, spec.purchase_window_s)
    else:
        log = click_log(lines, spec.window_s, spec.purchase_window_s).standing_for(spec.negative_rate, ~new)
    _judged(log, task, new)
    return log, new


def evaluate_log(
    scorer: Scorer,
    task: str,
    data: Sequence[Line],
    history: Sequence[Line] = (),
    delays_s: Sequence[float] = (),
    *,
    detail: bool = False,
) -> dict[str, Any]:
    """Figures of one of `TASKS` over the data's rows, with the states that the history leaves; outcomes are known at
    once, events of one time never see each other. Both are read as the log that the artifact's head was fitted on, see
    `read_events`. ``delays``: the same for outcomes known so much later, see `delayed_figures`. ``slices``, for
    ``detail``: by the user's earlier events, see `warmth_slices`. Raises DataError."""
    head = ClickHead.from_scorer(scorer)
    log, new = read_events(task, data, history, LogSpec.of(scorer.head("click")))
    if delays_s and "action" in (first := [*history, *data][0]).row:
        raise DataError(f"{first}: a shop action is known when it happens; delays are of impressions")
    log = log.encoded(scorer)
    told = answered(log, head, task, new)
    found: dict[str, Any] = {"task": task, **told.figures()}
    if delays_s:
        found["delays"] = delayed_figures(log, head, task, new, delays_s)
    if detail:
        found["slices"] = told.slices()
    return found


def delayed_figures(
    log: Log, head: ClickHead, task: str, new: npt.NDArray[np.bool_], delays_s: Sequence[float]
) -> list[dict[str, Any]]:
    """Figures for outcomes that are known so many seconds after their impression: ``at_once``, where the worker folds
    the impression when it is shown and its answer later, and not, where one event tells both when it is known."""
    return [
        {
            "delay_s": seconds,
            "at_once": at_once,
            **answered(log, head, task, new, Delay(int(1000 * seconds), at_once)).figures(),
        }
        for seconds in delays_s
        for at_once in (True, False)
    ]


def answered(log: Log, head: ClickHead, task: str, new: npt.NDArray[np.bool_], delay: Delay = NO_DELAY) -> Answered:
    """What the head says of the ``new`` events [n] whose outcome is known. Raises DataError when there is none."""
    truth, judged = _judged(log, task, new)
    earlier = earlier_events(log.users, log.time_ms)[judged]
    return Answered(_answers(log, head, task, judged, delay), truth[judged], log.users[judged], earlier)


def _judged(log: Log, task: str, new: npt.NDArray[np.bool_]) -> tuple[F64, npt.NDArray[np.bool_]]:
    """Outcomes [n] and which of the ``new`` events [n] have a known one. Raises DataError when there is none."""
    truth = {"click": log.label, "purchase": log.bought, "conversion": log.converted}[task]
    judged = new & ~np.isnan(truth)
    if not judged.any():
        raise DataError(f"no row has a known outcome for {task}: {_NEEDED[task]}")
    return truth, judged


def _answers(log: Log, head: ClickHead, task: str, judged: npt.NDArray[np.bool_], delay: Delay) -> F64:
    """What the head says of the judged events, [number of them]."""
    one = np.ones(int(judged.sum()))
    click = one if task == "purchase" else settled(log, head, delay)[judged]
    bought = one if task == "click" else head.purchase(log.features(head.scales_s, judged, delay=delay))
    return np.asarray(click * bought, np.float64)
