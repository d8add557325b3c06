"""The report on an artifact: one HTML page that needs nothing else, and the same as JSON beside it.

It is made of measurements only: the trials are run anew, and what was measured elsewhere (click figures, results of
shared against single training and of variants, a run's losses) is taken as it stands. Same inputs, same bytes: it bears
no date.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from model.artifact import MANIFEST, Artifact
from model.assess.detail import assess_files
from model.assess.evaluate import STREAM_TASKS
from model.assess.report_page import page
from model.assess.report_variants import read_variants
from model.assess.sharing import is_number, learning_curve, read_sharing
from model.data import Columns, fingerprint, read_rows
from model.errors import DataError, ModelError
from model.scoring import Scorer, load_scorer
from model.torch_scorer import SCALE

_POINTS_MAX = 200  # of a training curve; more are averaged in runs
_CLOCKS = {"step", "time", "seconds", "epoch", "tokens"}  # what a run logs and nobody wants to see as a curve
_LOSSES = ("loss", "losses", "held")  # of a task, shown together


class TrialLike(Protocol):
    """A task, the labelled file it is measured on, where that has text and label, and the files of what came before, as
    ``model.training.recipe.Trial`` has them."""

    @property
    def task(self) -> str: ...
    @property
    def file(self) -> str | Path: ...
    @property
    def columns(self) -> Columns: ...
    @property
    def history(self) -> Sequence[str | Path]: ...


def write_report(
    artifact_folder: Path,
    trials: Sequence[TrialLike],
    out: Path,
    *,
    sharing: Path | None = None,
    variants: Path | None = None,
    curves: Path | None = None,
    root: Path | None = None,
    fields: Sequence[str] = (),
    device: str = "auto",
) -> dict[str, Any]:
    """Measure the artifact on the trials and write the page ``out`` and ``out`` with the suffix .json; its content.

    Trial files are looked for under ``root``. ``fields``: slice by these fields, in the files whose rows have them.
    ``sharing``, ``variants`` and ``curves``: as for ``save_report``. Raises ArtifactError, DataError (a file, field or
    label is wrong) or ModelError when the page cannot be written.
    """
    scorer = load_scorer(artifact_folder, device=device)
    tasks = [_task(scorer, trial, root or Path(), fields) for trial in trials]
    _check_fields(fields, tasks)
    return save_report(artifact_folder, tasks, out, sharing=sharing, variants=variants, curves=curves)


def save_report(
    artifact_folder: Path,
    tasks: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    sharing: Path | None = None,
    variants: Path | None = None,
    curves: Path | None = None,
) -> dict[str, Any]:
    """Write the report from what was measured; its content. ``tasks``: as ``assess_files`` gives them, each with its
    ``file`` and that file's ``sha256``.

    ``sharing``, ``variants``: see ``read_sharing`` and ``read_variants``; ``curves``: a run's metrics.jsonl, see
    ``read_curves``. Raises ArtifactError, DataError, or ModelError when the page cannot be written.
    """
    artifact = Artifact.load(artifact_folder)
    points, intervals = (None, {}) if sharing is None else read_sharing(sharing)
    report = {
        "artifact": _header(artifact),
        "data": artifact.manifest.get("data", {}),
        "tasks": [{**task, **_head(artifact, task["task"])} for task in tasks],
        "click": artifact.manifest.get("click"),
        "sharing": points,
        "learning_curve": None if points is None else learning_curve(points, intervals),
        "variants": None if variants is None else read_variants(variants),
        "curves": None if curves is None else read_curves(curves),
    }
    out = Path(out)
    content = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(report), encoding="utf-8")
        out.with_suffix(".json").write_text(content, encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{out} cannot be written ({error.strerror}); choose another place with --out") from error
    return report


def read_curves(path: Path) -> list[dict[str, Any]]:
    """A run's figures by step, from JSON Lines of a ``step`` and numbers, nested or not (see model/training/watch.py).

    ``{"step": 10, "losses": {"topic": 1.2}, "held": {"topic": 1.4}}`` gives the panel ``topic`` with both lines; so
    does ``losses/topic``. ``{"valid": {"topic": {"accuracy": 0.7}}}`` is a line of the panel ``topic, valid rows``;
    anything else has a panel of its own. Each panel: name, whether it is of losses or valid rows and so shown first,
    lines of name and points [step, value], at most 200 a line. Raises DataError.
    """
    panels: dict[tuple[str, bool], dict[str, list[tuple[float, float]]]] = {}
    for number, row in read_rows(path, torn=True):
        step = row.get("step")
        if not is_number(step):
            raise DataError(f"{path}:{number}: no number `step`; a run's metrics.jsonl is expected")
        for name, value in _numbers(row):
            panel, line, first = _placed(name)
            panels.setdefault((panel, first), {}).setdefault(line, []).append((float(step), value))
    if not panels:
        raise DataError(f"{path}: no figures; a run's metrics.jsonl is expected")
    return [
        {
            "name": panel,
            "first": first,
            "lines": [{"name": name, "points": _thinned(points)} for name, points in lines.items()],
        }
        for (panel, first), lines in panels.items()
    ]


def _placed(name: str) -> tuple[str, str, bool]:
    """A figure's panel and line, and whether it is of those shown first."""
    group, _, task = name.partition("/")
    if group in _LOSSES:
        return task or "loss", group, True
    if group == "valid" and "/" in task:
        task, _, figure = task.rpartition("/")
        return f"{task}, valid rows", figure.replace("_", " "), True
    return name.replace("/", ": "), name, False


def _task(scorer: Scorer, trial: TrialLike, root: Path, fields: Sequence[str]) -> dict[str, Any]:
    path, history = root / trial.file, [root / name for name in trial.history]
    place = {"file": str(trial.file), "sha256": fingerprint(path)}
    own = () if trial.task in STREAM_TASKS else fields
    return assess_files(scorer, trial.task, [path], history, columns=trial.columns, fields=own, lenient=True) | place


def _check_fields(fields: Sequence[str], tasks: Iterable[Mapping[str, Any]]) -> None:
    found = {cut["by"] for task in tasks for cut in task.get("slices", [])}
    missing = [field for field in fields if field not in found]
    if missing:
        raise DataError(f"--slice {missing[0]}: no row of any file has this field")


def _header(artifact: Artifact) -> dict[str, Any]:
    manifest, encoder = artifact.manifest, artifact.manifest["encoder"]
    files = [artifact.folder / name for name in (*manifest["files"], MANIFEST)]
    return {
        "name": manifest["name"],
        "version": manifest["version"],
        "space": manifest["space"],
        "bytes": sum(file.stat().st_size for file in files),
        "parameters": sum(int(t.size) for name, t in artifact.tensors.items() if not name.endswith(SCALE)),
        "layers": encoder["layers"],
        "hidden": encoder["hidden"],
        "vocabulary": encoder["vocab_size"],
        "grams": manifest["bag_grams"],
        "gram_columns": manifest["bag_columns"],
        "max_tokens": manifest["text"]["max_tokens"],
        "heads": {name: len(head["labels"]) for name, head in manifest["heads"].items()},
    }


def _head(artifact: Artifact, task: str) -> dict[str, Any]:
    head = artifact.manifest["heads"].get(task)
    return {} if head is None else {"temperature": head["temperature"], "head_labels": len(head["labels"])}


def _numbers(row: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{above}{name}/")
        elif is_number(value) and (above or name not in _CLOCKS):
            yield f"{above}{name}", float(value)


def _thinned(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    size = -(-len(points) // _POINTS_MAX)
    runs = (points[i : i + size] for i in range(0, len(points), size))
    return [[run[-1][0], round(sum(value for _, value in run) / len(run), 6)] for run in runs]
