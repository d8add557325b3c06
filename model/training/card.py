"""The model card: what an artifact was made from, how well it does, where it must not be trusted."""

from collections.abc import Iterable, Mapping
from textwrap import fill
from typing import Any

from model.assess.report_tasks import rows_judged
from model.calibrate import CALIBRATION_ROWS_MIN
from model.training.recipe import Recipe

_PARTS = """One encoder, {heads} heads. `model/artifact.py` describes format and checks. Vector space `{space}`.

| part | what it is |
| --- | --- |
| encoder | {layers} layers, width {hidden}, {origin}; {vocabulary} pieces |
| n-gram channel | {channel} |
| text | at most {tokens} pieces, head and tail kept; NFKC, {lower}emoji kept |
| training | {training} |
"""
_CLICK_FIGURES = ("n", "auc", "log_loss", "ece", "predicted_over_observed", "base_rate")
_WIDTH = 120  # of a line


def render(recipe: Recipe, manifest: Mapping[str, Any]) -> str:
    """The card as Markdown, from the recipe and the finished manifest."""
    use = f"\n## Use\n\n{_wrapped(recipe.card.use)}\n" if recipe.card.use else ""
    return (
        _intro(recipe, manifest)
        + _parts(recipe, manifest)
        + use
        + _data(recipe)
        + _figures(manifest)
        + _click(recipe, manifest)
        + _heads(manifest)
        + _limits(recipe, manifest)
    )


def _wrapped(text: str, bullet: str = "") -> str:
    return fill(text, _WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet), break_on_hyphens=False)


def _named(heads: Iterable[str]) -> str:
    return ", ".join(f"`{head}`" for head in heads)


def _intro(recipe: Recipe, manifest: Mapping[str, Any]) -> str:
    said = [recipe.card.intro or f"A multi-task text model, made with the recipe `{recipe.name}`."]
    if "onto" in manifest:
        told = "all else is as in that artifact, whose own card tells its data and limits"
        own = _named([*recipe.heads, *(("click", "purchase") if recipe.click else ())])
        said.append(f"{own} came onto `{manifest['onto']}`; {told}.")
    return f"# Model card: {manifest['version']}\n\n{_wrapped(' '.join(said))}\n\n"


def _parts(recipe: Recipe, manifest: Mapping[str, Any]) -> str:
    encoder, grams, columns = manifest["encoder"], manifest["bag_grams"], manifest["bag_columns"]
    return _PARTS.format(
        heads=len(manifest["heads"]),
        space=manifest["space"],
        layers=encoder["layers"],
        hidden=encoder["hidden"],
        origin=f"as in `{manifest['onto']}`" if "onto" in manifest else f"from `{recipe.body}`",
        vocabulary=encoder["vocab_size"],
        channel=f"{grams} n-grams of characters and words, {columns} linear columns in int8, fitted first"
        if columns
        else "none",
        tokens=manifest["text"]["max_tokens"],
        lower="lower case, " if manifest["text"]["lower"] else "",
        training=_training(recipe, onto="onto" in manifest),
    )


def _training(recipe: Recipe, *, onto: bool) -> str:
    if onto:
        heads = f"{_named(recipe.heads)}: a regression each on encoded rows; " if recipe.heads else ""
        return heads + ("click and purchase on logs; " if recipe.click else "") + "nothing else was trained"
    if not recipe.teachers:
        return "one network"
    bodies = ", ".join(f"`{teacher.body or recipe.body}`" for teacher in recipe.teachers)
    share, folds = recipe.training.taught_share, recipe.training.teacher_folds
    return (
        f"one network; {share:.0%} of each target is the mean answer of teachers with the bodies {bodies}, {folds} "
        "networks each, for rows that they had not seen, the rest the label"
    )


def _limits(recipe: Recipe, manifest: Mapping[str, Any]) -> str:
    """The recipe's own limits, then what follows from how any artifact is made."""
    limits = list(recipe.card.limits)
    measured = {figures["task"] for figures in manifest["metrics"]}
    if unmeasured := [head for head in manifest["heads"] if head not in measured]:
        limits.append(f"Never measured on a file of their own: {_named(unmeasured)}.")
    if recipe.training.frozen_layers and "onto" not in manifest:
        layers = recipe.training.frozen_layers
        limits.append(f"Embeddings and the first {layers} layers stayed as they were in `{recipe.body}`.")
    if any(head.threshold for head in recipe.heads.values()):
        limits.append(
            "Out of scope is told by a threshold on the top probability, chosen at the least expected cost on "
            "calibration rows, or, where fewer than fifty of those are out of scope, so that it turns away "
            f"{recipe.scope_cost.lost_max:.1%} that would have been answered well."
        )
    limits.append("Answers about people or groups were not tested for bias. Do not use them to judge persons.")
    if recipe.heads:
        limits.append(_temperatures(recipe, onto="onto" in manifest))
    return "\n".join(["", "## Limits", "", *(_wrapped(limit, "- ") for limit in limits), ""])


def _temperatures(recipe: Recipe, *, onto: bool) -> str:
    if onto:
        return (
            f"The temperatures of {_named(recipe.heads)} were fitted on answers to rows that the answering fit had not "
            "seen."
        )
    return f"Temperatures were fitted on {recipe.calibration_share:.0%} of each training file, held back from training."


def _data(recipe: Recipe) -> str:
    if not recipe.datasets:
        return ""
    lines = ["", "## Data and Licences", "", "| data set | heads | source and licence |", "| --- | --- | --- |"]
    for dataset in recipe.datasets:
        heads = _named(dataset.labels) or "out of scope"
        lines.append(f"| {dataset.file or dataset.name} | {heads} | {dataset.source} |")
    return "\n".join([*lines, ""])


def _figures(manifest: Mapping[str, Any]) -> str:
    if not manifest["metrics"]:
        return "\n## Figures\n\nNone: no file of the recipe's `evaluation` was there.\n"
    floor = ["linear_accuracy", "linear_macro_f1"] if any("linear_accuracy" in f for f in manifest["metrics"]) else []
    names = ["accuracy", "macro_f1", "in_scope_accuracy", "oos_recall", "mae", "auc", "log_loss", "ece", *floor]
    columns = ["task", "file", "rows", *(name.replace("_", " ") for name in names)]
    told = "; `linear` is a linear machine on n-grams that learned from the same rows" if floor else ""
    lines = ["", "## Figures", "", f"On the valid splits{told}.", ""]
    lines += ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for figures in manifest["metrics"]:
        file = next(iter(figures["files"]))
        note = f" ({figures['rows']})" if "rows" in figures else ""
        rows = " ".join(rows_judged(figures) or (str(figures["n"]),))
        cells = [f"`{figures['task']}`", f"{file}{note}", rows]
        cells += [f"{figures[name]:.3f}" if figures.get(name) is not None else "" for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _click(recipe: Recipe, manifest: Mapping[str, Any]) -> str:
    """What the click and purchase heads reach, where the artifact has them."""
    if "click" not in manifest:
        return ""
    if recipe.click is None:
        return f"\n## Click and purchase\n\nAs in `{manifest['onto']}`: its card has the figures.\n"
    section, settings = manifest["click"], recipe.click
    lines = ["", "## Click and purchase", "", "| head | measured on | " + " | ".join(_CLICK_FIGURES) + " |"]
    lines.append("| --- " * (len(_CLICK_FIGURES) + 2) + "|")
    log = settings.actions or settings.file
    measured = [
        ("click", f"{settings.valid}, progressive at zero delay", section.get("valid")),
        *(("click", f"the same, {_told(found)}", found) for found in section.get("valid_delays", [])),
        ("conversion", f"{settings.valid}, p(click) p(purchase) of all impressions", section.get("valid_conversion")),
        ("purchase", f"the last fifth of {log}, state counts only, no text", section.get("purchase_held_out")),
    ]
    for head, on, found in measured:
        if found:
            cells = " | ".join(str(found.get(name, "")) for name in _CLICK_FIGURES)
            lines.append(f"| {head} | {on} | {cells} |")
    source = f"Learned from {settings.source}. " if settings.source else ""
    fitted = (
        f"Purchases: {section['purchase_note']}. Fitted for clicks known {section['delay_s']:g} s after their"
        " impression; where the shop's are later, fit with its `delay_s`. The logs' base rates may not be the shop's:"
        " set the shop's own in the configuration."
    )
    return "\n".join([*lines, "", source + fitted, ""])


def _told(found: Mapping[str, Any]) -> str:
    how = "shown folded at once, the click later" if found["at_once"] else "one event when the outcome is known"
    return f"outcomes {found['delay_s']:g} s late: {how}"


def _heads(manifest: Mapping[str, Any]) -> str:
    lines = ["", "## Heads", "", "| head | labels | temperature | threshold |", "| --- | --- | --- | --- |"]
    for name, head in manifest["heads"].items():
        labels = ", ".join(head["labels"]) if len(head["labels"]) <= 15 else f"{len(head['labels'])} labels"
        threshold = "" if head["threshold"] is None else f"{head['threshold']:.3f}"
        lines.append(f"| `{name}` | {labels} | {head['temperature']:.2f} | {threshold} |")
    rows = {name: head.get("calibration_rows", CALIBRATION_ROWS_MIN) for name, head in manifest["heads"].items()}
    for name, head in manifest["heads"].items():
        if weights := head.get("decision_weights"):
            told = ", ".join(f"{label} {weight:.2f}" for label, weight in zip(head["labels"], weights, strict=True))
            words = f"`{name}` answers for macro-F1: the label of the largest probability times its weight ({told})."
            lines += ["", _wrapped(words)]
    few = ", ".join(f"`{name}` ({count})" for name, count in rows.items() if count < CALIBRATION_ROWS_MIN)
    if few:
        lines += ["", f"Calibrated on fewer than {CALIBRATION_ROWS_MIN} rows, so how sure it is says little: {few}."]
    return "\n".join([*lines, ""])
