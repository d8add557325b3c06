"""The model card: what an artifact was made from, how well it does, where it must not be trusted."""

from collections.abc import Mapping
from typing import Any

from model.training.recipe import Recipe

_INTRO = """# Model card: {version}

A small bilingual (Chinese, English) multi-task text model for an online shop: one encoder, {heads} heads. `make
{made}` makes it from `model/training/{made}.yaml`; `model/artifact.py` describes format and checks. Vector space
`{space}`.

| part | what it is |
| --- | --- |
| encoder | {layers} layers, width {hidden}, from `{body}`; {vocabulary} pieces |
| n-gram channel | {grams} n-grams of characters and words, {columns} linear columns in int8, fitted first |
| text | at most {tokens} pieces, head and tail kept; NFKC, lower case, emoji kept |
| training | {training} |
"""
_CLICK_FIGURES = ("n", "auc", "log_loss", "ece", "predicted_over_observed", "base_rate")
_USE = """
## Use

Development, demonstration and as a starting point. **Most of the training data has no open licence: it is research
data. Train again on your own data before any commercial use** (`make starter` with a recipe of your own).
"""
_LIMITS = """
## Limits

- Chinese shop intents were learned from our own templates only (no real labelled Chinese messages). Their figure is on
  `shop_zh_test.jsonl`, messages written for this in other words by somebody who had not seen the templates, with one
  annotator; the English one is on text itself generated from templates. Expect less on real messages.
- English reviews are of musical instruments, 88 % of them with four or five stars; `neutral` is rare and weak. Chinese
  reviews have two classes only, so `neutral` in Chinese rests on what English taught.
- About 14 of the 16 most confident errors of a linear model on the Chinese reviews are wrong labels: figures near 0.95
  are close to what the labels allow.
- The body's weights come from 4 bits{frozen}. Compare the table with its floor column before relying on a head; Chinese
  sentiment and category rest on the n-gram channel as well.
- Weibo emotions are from the first months of 2020 and reflect that time. `topic` has about 80 training rows a class.
- Out of scope is told by a threshold on the top probability, chosen at the least expected cost on calibration rows, or,
  where fewer than fifty of those are out of scope, so that it turns away {lost:.1%} that would have been answered well;
  few out-of-scope rows were there to learn from.
- Sentiment about people or groups was not tested for bias. Do not use it to judge persons.
- Temperatures were fitted on {share:.0%} of each training file, held back from training; template sentences of one
  template stand on both sides of that cut, so the confidence on Chinese intents is too high.
"""


def render(recipe: Recipe, manifest: Mapping[str, Any]) -> str:
    """The card as Markdown, from the recipe and the finished manifest."""
    encoder = manifest["encoder"]
    intro = _INTRO.format(
        version=manifest["version"],
        heads=len(manifest["heads"]),
        space=manifest["space"],
        layers=encoder["layers"],
        hidden=encoder["hidden"],
        body=recipe.body,
        vocabulary=encoder["vocab_size"],
        grams=manifest["bag_grams"],
        columns=manifest["bag_columns"],
        tokens=manifest["text"]["max_tokens"],
        made="starter-gpu" if recipe.teachers else "starter",
        training=_training(recipe),
    )
    layers = recipe.training.frozen_layers
    frozen = f"; embeddings and the first {layers} layers stayed as they were" if layers else ""
    limits = _LIMITS.format(lost=recipe.scope_cost.lost_max, share=recipe.calibration_share, frozen=frozen)
    return (
        intro + _USE + _data(recipe) + _figures(recipe, manifest) + _click(recipe, manifest) + _heads(manifest) + limits
    )


def _training(recipe: Recipe) -> str:
    if not recipe.teachers:
        return "one network"
    bodies = ", ".join(f"`{teacher.body or recipe.body}`" for teacher in recipe.teachers)
    share, folds = recipe.training.taught_share, recipe.training.teacher_folds
    return (
        f"one network; {share:.0%} of each target is the mean answer of teachers with the bodies {bodies}, {folds} "
        "networks each, for rows that they had not seen, the rest the label"
    )


def _data(recipe: Recipe) -> str:
    lines = ["", "## Data and Licences", "", "| data set | heads | source and licence |", "| --- | --- | --- |"]
    for dataset in recipe.datasets:
        heads = ", ".join(f"`{head}`" for head in dataset.labels) or "out of scope"
        lines.append(f"| {dataset.file or dataset.name} | {heads} | {dataset.source} |")
    return "\n".join([*lines, ""])


def _figures(recipe: Recipe, manifest: Mapping[str, Any]) -> str:
    names = ("accuracy", "macro_f1", "in_scope_accuracy", "oos_recall", "mae", "auc", "log_loss", "ece")
    lines = [
        "",
        "## Figures",
        "",
        "On the valid splits; `floor` is TF-IDF with a linear machine on the test split.",
        "",
        "| task | file | rows | " + " | ".join(name.replace("_", " ") for name in names) + " | floor |",
        "| --- " * (len(names) + 4) + "|",
    ]
    floors = {(trial.task, trial.file): trial.floor for trial in recipe.evaluation}
    for figures in manifest["metrics"]:
        file = next(iter(figures["files"]))
        cells = [f"{figures[name]:.3f}" if name in figures else "" for name in names]
        floor = floors.get((figures["task"], file), "")
        note = f" ({figures['rows']})" if "rows" in figures else ""
        lines.append(f"| `{figures['task']}` | {file}{note} | {figures['n']} | {' | '.join(cells)} | {floor} |")
    return "\n".join([*lines, ""])


def _click(recipe: Recipe, manifest: Mapping[str, Any]) -> str:
    """What the click and purchase heads reach, where the artifact has them."""
    if "click" not in manifest or recipe.click is None:
        return ""
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
    return "\n".join([*lines, ""])
