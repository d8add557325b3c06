"""What people see of an explanation."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from model.assess.explain import Explanation, Part
from tests.tiny_artifact import make_tiny_artifact
from worker.config import ModelConfig
from worker.errors import InputError
from worker.tools.explained import coloured, explain_text, explanation_view

FOUND = Explanation(
    head="sentiment",
    label="negative",
    method="occlusion",
    text="屏幕 broke, [bold]sorry",
    probability=0.75,
    logit=1.1,
    parts=(Part(0, 1, "屏", 0.01, 0.0), Part(3, 8, "broke", 2.0, 0.4), Part(16, 21, "sorry", -1.0, -0.1)),
)


def test_green_raises_red_lowers_and_what_hardly_weighs_stays_plain() -> None:
    text = coloured(FOUND)
    assert text.plain == FOUND.text  # brackets are text, not markup
    assert [(span.start, span.end, span.style) for span in text.spans] == [(3, 8, "bold green"), (16, 21, "red")]


def test_the_view_names_label_and_strongest_parts_first() -> None:
    console = Console(width=80, record=True)
    console.print(explanation_view(FOUND))
    shown = console.export_text()
    assert "sentiment: negative 0.750" in shown
    assert shown.index("broke ") < shown.index("+2.000") < shown.index("-1.000")


@pytest.mark.parametrize("method", ["occlusion", "gradients"])
def test_one_head_of_the_configured_artifact_is_explained(method: str, tmp_path: Path) -> None:
    model = ModelConfig(artifact=str(make_tiny_artifact(tmp_path / "tiny")), device="cpu")
    found = explain_text(model, "屏幕 broke", "sentiment", label="positive", method=method)
    assert (found.label, [part.text for part in found.parts]) == ("positive", ["屏", "幕", "broke"])
    Console(width=80, record=True).print(explanation_view(found))
    with pytest.raises(InputError, match=r"one head at a time .* intent\.shop"):
        explain_text(model, "broke", "intent")
    with pytest.raises(InputError, match="this model has category"):
        explain_text(model, "broke", "mood")
