"""The end of a training: figures on the valid files, model card, and the report beside the artifact."""

from pathlib import Path

from model.assess.report import save_report
from model.training.examples import Tell
from model.training.export import write_card
from model.training.recipe import Recipe
from model.training.trials import add_figures

REPORT = "report.html"


def finish(
    recipe: Recipe, data: Path, folder: Path, *, tell: Tell, report: bool = True, curves: Path | None = None
) -> None:
    """Record the figures of the artifact in ``folder`` and write its card; with ``report`` also the report, a page and
    the same as JSON, beside the folder, with the run's ``curves`` (metrics.jsonl) where there are some. ``tell`` hears
    where they are. The report costs no second pass over the valid files. Raises DataError and ModelError."""
    assessed = add_figures(recipe, data, folder, detail=report)
    write_card(recipe, folder)
    tell(f"artifact in {folder}")
    if report:
        there = curves is not None and curves.exists() and curves.stat().st_size
        out = folder.with_name(REPORT)
        save_report(folder, assessed, out, curves=curves if there else None)
        tell(f"report in {out}")
