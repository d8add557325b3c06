"""The logs that a recipe's click section names, read and checked whole before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from model.clicks.fields import read_lines
from model.clicks.fit import CROSS, WARM_UP, learned_from
from model.clicks.headlines import TRAIN_MAX, HeadlineTests
from model.clicks.log import Log
from model.clicks.rows import click_log, purchase_log
from model.clicks.settings import ClickSettings
from model.data import fingerprint
from model.errors import DataError

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ClickData:
    """Logs without vectors.

    purchases  what purchases are learned from: shop actions, or the impressions themselves; None where nothing tells
    valid      the impressions and the valid ones after them; None where there are none
    headlines  train and valid A/B tests; None where there are none
    files      name and SHA-256 of what was read
    """

    clicks: Log
    purchases: Log | None
    valid: Log | None
    headlines: tuple[HeadlineTests, HeadlineTests] | None
    files: Mapping[str, str]

    @classmethod
    def read(cls, settings: ClickSettings, folder: Path) -> ClickData:
        """Read the files of the settings in a folder. Raises DataError naming file, line and field, or what a file
        lacks to learn from it."""
        path, actions, valid = (folder / name for name in (settings.file, settings.actions, settings.valid))
        windows = settings.window_s, settings.purchase_window_s
        lines = read_lines([path])
        clicks = click_log(lines, *windows)
        _check_clicks(clicks, settings, path)
        purchases = clicks if not np.isnan(clicks.bought).all() else None
        if purchases is None and not settings.actions and any("purchased" in line.row for line in lines):
            hint = "what was bought is known of no click: the log is shorter than purchase_window_s, and waits"
            _log.warning("purchases are told as in a common shop", file=str(path), hint=hint)
        if settings.actions:
            purchases = purchase_log(read_lines([actions]), settings.purchase_window_s)
        if purchases is not None:
            _check_purchases(purchases, actions if settings.actions else path)
        measured = bool(settings.valid) and valid.exists()
        later = click_log([*lines, *read_lines([valid])], *windows) if measured else None
        if later is not None and np.isnan(later.label[len(lines) :]).all():
            raise DataError(f"{valid}: no impression has a known outcome; give a longer log, or leave click.valid out")
        headlines = _headlines([folder / name for name in settings.headlines])
        read = [settings.file, settings.actions, settings.valid if measured else ""]
        read += settings.headlines if headlines else []
        return cls(
            clicks=clicks,
            purchases=purchases,
            valid=later,
            headlines=headlines,
            files={name: fingerprint(folder / name) for name in read if name},
        )


def _headlines(paths: Sequence[Path]) -> tuple[HeadlineTests, HeadlineTests] | None:
    """A/B tests to fit on and to judge; None where a file is not there."""
    if not paths or not all(path.exists() for path in paths):
        return None
    train, valid = (read_lines([path]) for path in paths)
    return HeadlineTests(train, TRAIN_MAX), HeadlineTests(valid)


def _check_clicks(log: Log, settings: ClickSettings, path: Path) -> None:
    rows = learned_from(log)
    for keys in (log.users, log.items):
        for part in range(CROSS):
            label = log.label[rows & (keys % CROSS != part)]
            if not 0 < label.sum() < len(label):
                clicked = int(np.nansum(log.label[rows]))
                raise DataError(
                    f"{path}: too little to learn clicks from: after the first {WARM_UP:.0%} of its time there are"
                    f" {clicked} impressions known to be clicked and {int(rows.sum()) - clicked} known not to be; both"
                    " are needed, of several users and items: give a longer log"
                )
    contexts = [context for context, row in zip(log.contexts, rows, strict=True) if row]
    for feature in settings.context:
        try:
            feature.fitted(contexts)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _check_purchases(log: Log, path: Path) -> None:
    known = log.bought[~np.isnan(log.bought)]
    if not 0 < known.sum() < len(known):
        raise DataError(
            f"{path}: too little to learn purchases from: of {len(known)} clicks whose attribution window is over"
            f" {int(known.sum())} were bought; both kinds are needed: give a longer log"
        )
