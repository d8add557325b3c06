"""The commands that get labels for texts: active picks what to label, label takes what the model is sure of."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from worker.cli.base import FILE, PATH, artifact_option, common, json_option

if TYPE_CHECKING:
    from model.scoring import Scorer
    from worker.config import Config


class _Texts(NamedTuple):
    """Texts without labels, the head that reads them, and where to write: what `active` and `label` are given."""

    artifact: str | None
    task: str
    data: Path
    fields: tuple[str, ...]
    known: tuple[Path, ...]
    out: Path

    def scorer(self, config: Config) -> Scorer:
        """The model. Raises `ModelLoadError`."""
        from worker.tools.one_text import load

        return load(config.model, self.artifact)

    def options(self) -> dict[str, Any]:
        """What else the picking is told."""
        return {"labelled": self.known, "fields": self.fields}


def _reads_texts(function: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that picks from texts without labels; it gets them as one argument, ``texts``."""

    @artifact_option
    @click.option("--task", required=True, help="The head: sentiment, intent.shop, …")
    @click.option("--data", type=FILE, required=True, help="Unlabelled texts, JSON Lines.")
    @click.option("--field", "fields", multiple=True, metavar="FIELD", help="Where the text is: as in training.")
    @click.option("--known", type=FILE, multiple=True, help="Files whose texts are passed over.")
    @click.option("--out", type=PATH, required=True, help="The file to write.")
    @json_option
    @wraps(function)
    def command(**options: Any) -> None:
        function(texts=_Texts(*(options.pop(name) for name in _Texts._fields)), **options)

    return command


@click.command()
@_reads_texts
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="Texts to pick.")
@click.option(
    "--measure", type=click.Choice(["margin", "entropy"]), default="margin", show_default=True, help="Of uncertainty."
)
@common
def active(config: Config, texts: _Texts, count: int, measure: str, json_: bool) -> None:
    """Pick the texts most worth labelling: uncertain ones, and unlike each other. Their rows keep all their fields.

    \b
    millrace active --task intent.shop --data messages.jsonl --count 200 --out to-label.jsonl
    """
    from model.training.active import run_active
    from worker.cli import tables

    scorer = texts.scorer(config)
    found = run_active(scorer, texts.task, texts.data, count, texts.out, measure=measure, **texts.options())
    tables.show(found, tables.figures_table, json_=json_)


@click.command()
@_reads_texts
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.95,
    show_default=True,
    help="Least probability of a label.",
)
@click.option(
    "--per-class",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Most texts of a class, the surest.",
)
@common
def label(config: Config, texts: _Texts, confidence: float, per_class: int, json_: bool) -> None:
    """Label texts of which the model is sure, as one more data set to train on (self-training).

    \b
    millrace label --task sentiment --data unlabelled.jsonl --confidence 0.97 --out sure.jsonl
    """
    from model.training.selftrain import run_selftrain
    from worker.cli import tables

    more = {"per_class_max": per_class, **texts.options()}
    found = run_selftrain(texts.scorer(config), texts.task, texts.data, texts.out, confidence=confidence, **more)
    tables.show(found, tables.figures_table, json_=json_)


LABELLING_COMMANDS = (active, label)
