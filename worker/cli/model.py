"""The commands about the model: train, tune, export, evaluate, report, explain, active, label."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from worker.cli.base import FILE, ManyFiles, common, json_option

if TYPE_CHECKING:
    from model.scoring import Scorer
    from worker.config import Config

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)

recipe_option = click.option("--recipe", type=FILE, required=True, help="Heads, data sets and settings, one YAML file.")
data_option = click.option("--data", type=FOLDER, required=True, help="Folder of the data files that the recipe names.")
artifact_option = click.option("--artifact", help="Artifact folder; by default model.artifact of the configuration.")


@click.command()
@recipe_option
@data_option
@click.option("--out", type=PATH, required=True, help="Folder for checkpoints, logs and the artifact.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Bound of the training; 60 if not said.")
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, show_default=True, help="CPU threads; 0 leaves it to torch."
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), help="By default model.device; cuda: or not at all."
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard events to tb in --out.")
@click.option("--onto", type=FOLDER, help="Add the recipe's heads to this artifact and leave the rest as it is.")
@common
def train(
    config: Config,
    recipe: Path,
    data: Path,
    out: Path,
    minutes: float | None,
    threads: int,
    device: str | None,
    resume: bool,
    tensorboard: bool,
    onto: Path | None,
) -> None:
    """Train an artifact for all tasks of a recipe.

    Data files are checked whole before training begins. A run that was stopped, even by kill -9, goes on with
    --resume to the result that it would have had; Ctrl-C loses nothing. With --onto only the recipe's heads, and its
    click head, are fitted, in one go: of the recipe, heads, data sets, calibration, trials and the click section count.

    \b
    millrace train --recipe model/training/starter.yaml --data ../data --out runs/one --minutes 90
    millrace train --recipe urgency.yaml --data . --onto model/starter --out runs/urgency
    millrace train --recipe clicks.yaml --data logs --onto model/starter --out runs/tonight
    """
    from rich.console import Console

    from model.training.train import train as run
    from model.training.train import use_device

    use_device(device or config.model.device)
    if threads:
        import torch

        torch.set_num_threads(threads)
    if onto is not None:
        from model.training.newhead import add_heads
        from worker.errors import InputError

        if minutes is not None or resume or tensorboard:
            raise InputError("--minutes, --resume and --tensorboard do nothing with --onto; leave them out")
        click.echo(f"artifact in {add_heads(recipe, data, onto, out / 'artifact')}")
        return
    run(recipe, data, out, minutes=minutes or 60.0, resume=resume, console=Console(), tensorboard=tensorboard)


@click.command()
@recipe_option
@data_option
@click.option("--out", type=FOLDER, required=True, help="Folder of the training run.")
@common
def export(config: Config, recipe: Path, data: Path, out: Path) -> None:
    """Write the artifact of a training run as its last checkpoint has it, finished or not.

    \b
    millrace export --recipe model/training/starter.yaml --data ../data --out runs/one
    """
    from rich.console import Console

    from model.training.train import train as run

    run(recipe, data, out, minutes=0, resume=True, console=Console(), further=False)


@click.command()
@recipe_option
@data_option
@click.option("--out", type=PATH, required=True, help="Folder of the study; a later call goes on with it.")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Trials in all, those done before included.",
)
@click.option(
    "--tokens", type=click.IntRange(min=1), default=300_000, show_default=True, help="Tokens that each trial trains on."
)
@json_option
@common
def tune(config: Config, recipe: Path, data: Path, out: Path, trials: int, tokens: int, json_: bool) -> None:
    """Search the settings under `search:` of a recipe with Optuna, within a bounded number of trials.

    Each trial trains from the start and is judged by its loss on calibration rows, never on a valid file.

    \b
    millrace tune --recipe recipe.yaml --data ../data --out runs/study --trials 30
    """
    from rich.console import Console

    from model.training.tune import tune as search
    from worker.cli import tables

    found = search(recipe, data, out, trials=trials, tokens=tokens, console=Console(stderr=True))
    tables.show(found, tables.figures_table, json_=json_)


@click.command(cls=ManyFiles)
@artifact_option
@click.option("--task", required=True, help="A head, a family of heads (intent), click, purchase or conversion.")
@click.option("--data", type=FILE, multiple=True, required=True, metavar="FILE...", help="Labelled JSON Lines.")
@click.option("--field", "texts", multiple=True, metavar="FIELD", help="Where the text is: as in training.")
@click.option("--label-field", default="", metavar="FIELD", help="Where the label is: as in training.")
@click.option("--history", type=FILE, multiple=True, metavar="FILE...", help="For click: run through first.")
@click.option(
    "--delay-s",
    "delays_s",
    type=click.FloatRange(min=0),
    multiple=True,
    help="For click: as if clicks were known so late, too; by default 600 and 3600, 0 for none.",
)
@click.option("--labels", metavar="A,B", help="Answer among these labels; by default those that the files have.")
@click.option("--slice", "fields", multiple=True, metavar="FIELD", help="Figures by the values of a field, too.")
@click.option("--detail", is_flag=True, help="Intervals, classes, confusion, calibration, and slices by language.")
@json_option
@common
def evaluate(
    config: Config,
    artifact: str | None,
    task: str,
    data: tuple[Path, ...],
    texts: tuple[str, ...],
    label_field: str,
    history: tuple[Path, ...],
    delays_s: tuple[float, ...],
    labels: str | None,
    fields: tuple[str, ...],
    detail: bool,
    json_: bool,
) -> None:
    """Measure a model on labelled files. For click, purchase and conversion (both, over all impressions) the figures
    are progressive, after the history.

    Text and label are looked for where the head's training data had them; --field (again for each of several) and
    --label-field name other fields.

    \b
    millrace evaluate --task sentiment --data reviews.valid.jsonl.gz --json
    millrace evaluate --task sentiment --data reviews.valid.jsonl.gz --slice category
    millrace evaluate --task sentiment --data mails.jsonl --field subject --field body --label-field mood
    millrace evaluate --task click --data clicks.valid.jsonl.gz --history clicks.train.jsonl.gz
    """
    from model.data import Columns
    from worker.cli import tables
    from worker.tools.assessed import assessment_view
    from worker.tools.measure import measure
    from worker.tools.one_text import load

    if task == "click" and not delays_s:
        from model.clicks.evaluate import DELAYS_S

        delays_s = DELAYS_S
    among = tuple(part.strip() for part in labels.split(",")) if labels else ()
    columns = Columns(texts, label_field)
    late = tuple(seconds for seconds in delays_s if seconds)
    scorer = load(config.model, artifact)
    figures = measure(
        scorer, task, data, history, columns=columns, among=among, fields=fields, detail=detail, delays_s=late
    )
    tables.show(figures, assessment_view, json_=json_)


@click.command()
@artifact_option
@click.option("--trial", "pairs", multiple=True, metavar="TASK=FILE", help="A task and a labelled file; repeatable.")
@click.option("--field", "texts", multiple=True, metavar="TASK=FIELD", help="Where a task's texts are: as in training.")
@click.option("--label-field", "labels", multiple=True, metavar="TASK=FIELD", help="Where its labels are.")
@click.option("--slice", "fields", multiple=True, metavar="FIELD", help="Figures by the values of a field, too.")
@click.option("--sharing", type=FILE, help="What bench-shared wrote: shared against single models.")
@click.option("--variants", type=FILE, help="What bench-variants wrote: the recipe's options side by side.")
@click.option("--curves", type=FILE, help="metrics.jsonl of the training run.")
@click.option(
    "--out",
    type=PATH,
    default=Path("report.html"),
    show_default=True,
    help="The page; the same as JSON lies beside it.",
)
@json_option
@common
def report(
    config: Config,
    artifact: str | None,
    pairs: tuple[str, ...],
    texts: tuple[str, ...],
    labels: tuple[str, ...],
    fields: tuple[str, ...],
    sharing: Path | None,
    variants: Path | None,
    curves: Path | None,
    out: Path,
    json_: bool,
) -> None:
    """Write an artifact's report: one page without outside resources, and the same as JSON.

    Figures with intervals, classes, confusion, calibration, slices with flagged gaps, learning curves.

    \b
    millrace report --trial sentiment=reviews.valid.jsonl.gz --trial intent.shop=messages.jsonl --out report.html
    """
    from model.artifact import resolve
    from model.assess.report import write_report
    from worker.tools.trials import read_trials

    trials = read_trials(pairs, texts, labels)
    device = config.model.device
    folder = resolve(artifact or config.model.artifact)
    content = write_report(
        folder, trials, out, sharing=sharing, variants=variants, curves=curves, fields=fields, device=device
    )
    from worker.cli import tables

    if json_:
        tables.show(content, tables.figures_table, json_=True)
    else:
        click.echo(f"report in {out}")


@click.command()
@artifact_option
@click.option("--text", required=True, help="What a customer wrote, Chinese or English.")
@click.option("--task", required=True, help="One head: sentiment, category, intent.shop, …")
@click.option("--label", help="The answer to explain; by default the likeliest.")
@click.option(
    "--method",
    type=click.Choice(["occlusion", "gradients"]),
    default="occlusion",
    show_default=True,
    help="Leave parts out and score again, or integrated gradients.",
)
@json_option
@common
def explain(
    config: Config, artifact: str | None, text: str, task: str, label: str | None, method: str, json_: bool
) -> None:
    """Tell which parts of a text moved a score, to justify an alert or a routing.

    \b
    millrace explain --task sentiment --text "物流太慢了，质量还可以"
    millrace explain --task intent.shop --label get_refund --text "It broke. I want my money back"
    """
    from worker.cli import tables
    from worker.tools.explained import explain_text, explanation_view

    found = explain_text(config.model, text, task, label=label, method=method, artifact=artifact)
    if json_:
        tables.show(found.to_dict(), tables.figures_table, json_=True)
    else:
        tables.show(found, explanation_view, json_=False)


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


MODEL_COMMANDS = (train, tune, export, evaluate, report, explain, active, label)
