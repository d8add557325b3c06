"""The commands that judge a model: evaluate, report, explain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from worker.cli.base import FILE, PATH, ManyFiles, artifact_option, common, json_option

if TYPE_CHECKING:
    from worker.config import Config


@click.command(cls=ManyFiles)
@artifact_option
@click.option("--task", required=True, help="A head, a family of heads (intent), click, purchase or conversion.")
@click.option("--data", type=FILE, multiple=True, required=True, metavar="FILE...", help="Labelled JSON Lines.")
@click.option("--field", "texts", multiple=True, metavar="FIELD", help="Where the text is: as in training.")
@click.option("--label-field", default="", metavar="FIELD", help="Where the label is: as in training.")
@click.option(
    "--history",
    type=FILE,
    multiple=True,
    metavar="FILE...",
    help="What came before; for click: run through first, read as the log that the head was fitted on.",
)
@click.option(
    "--delay-s",
    "delays_s",
    type=click.FloatRange(min=0),
    multiple=True,
    help="For click: as if clicks were known so late, too; by default 600 and 3600, 0 for none.",
)
@click.option(
    "--labels",
    metavar="A,B",
    help="Answer among these labels; by default those of the files, all of the head's where they have one.",
)
@click.option("--slice", "fields", multiple=True, metavar="FIELD", help="Figures by the values of a field, too.")
@click.option(
    "--detail", is_flag=True, help="Intervals, classes, confusion, calibration; slices by language, length, user."
)
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
@click.option("--history", "histories", multiple=True, metavar="TASK=FILE", help="What came before; as for evaluate.")
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
    histories: tuple[str, ...],
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

    trials = read_trials(pairs, texts, labels, histories)
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


JUDGING_COMMANDS = (evaluate, report, explain)
