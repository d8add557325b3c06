"""The report on a tiny artifact: what it measures, that its page stands alone, that no data can break it."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.artifact import Artifact
from model.assess.detail import assess_files
from model.assess.report import read_curves, save_report, write_report
from model.assess.report_page import _overview
from model.assess.report_tasks import task_section
from model.assess.sharing import learning_curve, read_sharing
from model.assess.svg import Axis, Line, confusion_chart, line_chart, reliability_chart, round_numbers
from model.data import Columns
from model.errors import DataError, ModelError
from model.scoring import load_scorer
from model.training.recipe import Trial
from tests.click_head import click_rows
from tests.tiny_artifact import make_tiny_artifact

SLICE = {"n": 60, "log_loss": 0.6, "ece": 0.1, "predicted_over_observed": 1.2, "base_rate": 0.5}
SLICES = [
    {"value": "none", "auc": 0.6, "interval": [0.5, 0.7], "gap": -0.17, "flagged": True, **SLICE},
    {"value": "1–4", "auc": None, "interval": None, "gap": None, "flagged": False, **SLICE},
]
CLICK = {
    "base_rate": 0.5,
    "scales_s": [600.0],
    "valid": {"auc": 0.77, "n": 100},
    "valid_slices": [{"by": "user's earlier events", "figure": "auc", "slices": SLICES}],
    "note": "<b>counts alone</b>" * 5,
}


@dataclass
class OwnTrial:
    task: str
    file: Path
    columns: Columns = field(default_factory=Columns)
    history: list[Path] = field(default_factory=list)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny")
    Artifact.load(folder).add({}, "click", CLICK)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    words = ["屏幕坏了", "good order", "快递很好 iPhone", "cancel my card please"]
    write(
        root / "mood.jsonl",
        [
            {
                "text": words[i % 4] * (1 + i % 7),
                "sentiment": ["negative", "positive"][i % 2],
                "shop": "<script>"[: i % 9],
            }
            for i in range(240)
        ],
    )
    write(
        root / "shop.jsonl",
        [{"text": words[i % 4], "intent": ["cancel_order", "get_refund", "oos"][i % 3]} for i in range(60)],
    )
    write(
        root / "points.json",
        {"points": [{"task": "topic", "share": s, "shared": 0.8, "single": 0.9 - s / 2} for s in (0.01, 0.1, 1)]},
    )
    costs = {"parameters": 9, "seconds": 2.5, "tokens_per_second": 40, "memory_mb": 7}
    base = {"name": "base", "mean": 0.5, "tasks": {"<mood> a": 0.5}, "what": "the <b>recipe</b>"}
    gaps = {"difference": [0.25, 0.1, 0.4], "differences": {"<mood> a": [0.25, 0.1, 0.4]}}
    famo = {"name": "famo", "mean": 0.75, "tasks": {"<mood> a": 0.75}, "against": "base", **gaps}
    found = {"metric": "accuracy", "tokens": 4000, "share": 1.0, "variants": [base | costs, famo | costs]}
    write(root / "variants.json", found)
    write(root / "metrics.jsonl", [{"step": i, "seconds": i / 2, "loss": {"topic": 2 / i}} for i in range(1, 501)])
    return root


def write(path: Path, content: Any) -> None:
    lines = content if isinstance(content, list) else [content]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def sources(data: Path) -> dict[str, Path]:
    return {"sharing": data / "points.json", "variants": data / "variants.json", "curves": data / "metrics.jsonl"}


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    return [Trial("sentiment", "mood.jsonl"), Trial("intent.shop", "shop.jsonl")]


@pytest.fixture(scope="module")
def made(folder: Path, data: Path, trials: list[Trial], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    out = tmp_path_factory.mktemp("out") / "deep" / "report.html"
    return write_report(folder, trials, out, **sources(data), root=data, fields=["shop"], device="cpu"), out


def test_the_json_holds_what_was_measured(made: tuple[Any, Path], folder: Path, data: Path) -> None:
    report, out = made
    assert json.loads(out.with_suffix(".json").read_text(encoding="utf-8")) == report
    manifest = Artifact.load(folder).manifest
    assert {key: report["artifact"][key] for key in ("version", "space")} == {
        key: manifest[key] for key in ("version", "space")
    }
    mood, shop = report["tasks"]
    expected = assess_files(load_scorer(folder, device="cpu"), "sentiment", [data / "mood.jsonl"], fields=["shop"])
    assert {name: mood[name] for name in expected} == expected
    assert mood["n"] == 240
    assert "scope" in shop
    assert report["click"] == CLICK
    assert [point["share"] for point in report["sharing"]] == [0.01, 0.1, 1]
    assert [whole["share"] for whole in report["learning_curve"]["shares"]] == [0.01, 0.1, 1]
    assert [variant["name"] for variant in report["variants"]["variants"]] == ["base", "famo"]


def test_the_page_stands_alone_and_escapes_what_it_was_given(made: tuple[Any, Path]) -> None:
    html = made[1].read_text(encoding="utf-8")
    for outside in ("http:", "https:", "<script", "<link", "<img", "@import", "url(", "src="):
        assert outside not in html
    for told in (
        "prefers-color-scheme:dark",
        "@media print",
        "width=device-width",
        "&lt;script",
        "&lt;b&gt;counts alone",
    ):
        assert told in html
    for heading in (
        "Confusion",
        "Calibration",
        "Slices",
        "Out of scope",
        "Click and purchase",
        "Shared against",
        "Variants",
        '<span class="good">+0.2500</span> <span class="range">+0.1000 to +0.4000</span>',
        "Training",
    ):
        assert heading in html
    for anchor in re.findall(r'href="#(\w+)"', html):
        assert f'id="{anchor}"' in html


def test_every_class_shows_its_intervals(made: tuple[Any, Path]) -> None:
    report, out = made
    html = out.read_text(encoding="utf-8")
    for task in report["tasks"]:
        for found in task["classes"]:
            for name, (low, high) in found["intervals"].items():
                assert f'{found[name]:.3f} <span class="range">{low:.3f}–{high:.3f}</span>' in html
    assert "Wilson" in html


def test_a_task_that_a_linear_machine_answers_better_is_marked(made: tuple[Any, Path]) -> None:
    report, _ = made
    first, second = report["tasks"]
    assert "linear" not in _overview(report["tasks"])
    above = first | {"linear_accuracy": first["accuracy"] + 0.0625, "linear_macro_f1": 0.125}
    rows = _overview([above, second | {"linear_accuracy": 0.0, "linear_macro_f1": 0.0}]).split("<tr")[2:]
    assert [row.startswith(' class="bad"') for row in rows] == [True, False]
    assert f"{above['linear_accuracy']:.3f}, 0.125" in rows[0]


def test_clicks_are_sliced_by_warmth_where_fitted_and_where_measured(folder: Path, tmp_path: Path) -> None:
    rows = click_rows(400, seed=2)
    write(tmp_path / "before.jsonl", rows[:250])
    write(tmp_path / "clicks.jsonl", rows[250:])
    trial = OwnTrial("click", tmp_path / "clicks.jsonl", history=[tmp_path / "before.jsonl"])
    (task,) = write_report(folder, [trial], tmp_path / "r.html", device="cpu")["tasks"]
    (cut,) = task["slices"]
    assert (cut["by"], cut["figure"]) == ("user's earlier events", "auc")
    assert sum(part["n"] for part in cut["slices"]) == task["n"] == 150
    assert [part["value"] for part in cut["slices"]] == ["none", "1–4", "5–19"]
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert cut["slices"][0]["auc"] is None  # two rows alike
    for part in cut["slices"][1:]:
        assert f'{part["auc"]:.3f} <span class="range">' in html
    warned = html[html.index('class="summary warn"') :]
    assert 'href="#click">click</a>' in warned  # the flagged slice that the manifest has
    body = html.partition("<body>")[2].partition("</body>")[0]
    ET.fromstring(f"<body>{body}</body>")  # noqa: S314 - our own page


def test_the_page_is_well_formed(made: tuple[Any, Path]) -> None:
    body = made[1].read_text(encoding="utf-8").partition("<body>")[2].partition("</body>")[0]
    tree = ET.fromstring(f"<body>{body}</body>")  # noqa: S314 - our own page
    assert len(tree.findall(".//svg")) > 8


def test_same_inputs_same_page(made: tuple[Any, Path], folder: Path, data: Path, trials: list[Trial]) -> None:
    again = made[1].with_name("again.html")
    write_report(folder, trials, again, **sources(data), root=data, fields=["shop"], device="cpu")
    assert again.read_bytes() == made[1].read_bytes()


def test_without_trials_and_extras_there_is_still_a_page(tmp_path: Path) -> None:
    report = write_report(make_tiny_artifact(tmp_path / "tiny"), [], tmp_path / "r.html", device="cpu")
    assert report["click"] is None
    assert "No trial was given" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_out_of_scope_rows_alone_are_reported_without_classes(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "oos.jsonl", [{"text": "屏幕", "kind": "oos"}] * 3)
    own = OwnTrial("intent.shop", tmp_path / "oos.jsonl", Columns(label="kind"))
    report = write_report(folder, [own], tmp_path / "r.html", device="cpu")
    assert "classes" not in report["tasks"][0]
    assert "oos recall" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_rows_that_most_figures_are_not_of_are_told(folder: Path, tmp_path: Path) -> None:
    labels = ["cancel_order"] * 4 + ["get_refund"] * 36 + ["oos"] * 60
    write(tmp_path / "shop.jsonl", [{"text": "good order", "intent": label} for label in labels])
    (task,) = write_report(
        folder, [Trial("intent.shop", "shop.jsonl")], tmp_path / "r.html", root=tmp_path, device="cpu"
    )["tasks"]
    assert (task["n"], task["judged"]) == (100, 40)
    assert sum(sum(row) for row in task["confusion"]) == 40
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "40 of 100 rows (60 out of scope judged apart), guessed among" in html
    assert '40 of 100 rows<span class="under">(60 out of scope judged apart)</span>' in html
    without = {name: value for name, value in task.items() if name != "judged"}  # of an older release
    assert "<td>100</td>" in _overview([without])


def test_a_click_log_without_any_click_is_reported_without_auc(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "clicks.jsonl", [row | {"clicked": 0} for row in click_rows(60)])
    plain = {"n": 60, "log_loss": 0.1, "base_rate": 0.0}
    older = {"valid": {"auc": None, **plain}, "valid_slices": [{"by": "age", "figure": "auc", "slices": SLICES[1:]}]}
    for section in (older, {"valid": plain, "valid_slices": []}):
        own = Artifact.load(shutil.copytree(folder, tmp_path / "own", dirs_exist_ok=True)).add({}, "click", section)
        trial = OwnTrial("click", tmp_path / "clicks.jsonl")
        (task,) = write_report(own.folder, [trial], tmp_path / "r.html", device="cpu")["tasks"]
        assert "auc" not in task
        assert task["slices"] == []
        assert "NaN" not in (tmp_path / "r.json").read_text(encoding="utf-8")
        assert "<th>base rate</th>" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_what_is_no_number_is_not_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_report(folder, [{"task": "click", "file": "a", "n": 1, "auc": float("nan")}], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_task_of_many_labels_names_its_mistakes_without_a_picture(made: tuple[Any, Path]) -> None:
    shop = made[0]["tasks"][1] | {"labels": ["a", "b", "c", "d"]}
    few = shop | {"confusion": {"mistakes": [[shop["classes"][0]["label"], "<b>", 3]], "left_out": 2}}
    drawn = task_section(0, few)
    assert "<h3>Confusion</h3>" not in drawn
    assert "<td>3</td>" in drawn
    assert "&lt;b&gt;" in drawn


def test_what_cannot_be_used_is_refused(folder: Path, data: Path, tmp_path: Path, trials: list[Trial]) -> None:
    with pytest.raises(DataError, match="--slice colour"):
        write_report(folder, trials, tmp_path / "r.html", root=data, fields=["colour"], device="cpu")
    with pytest.raises(DataError, match="gone"):
        write_report(folder, [Trial("sentiment", "gone.jsonl")], tmp_path / "r.html", device="cpu")
    with pytest.raises(ModelError, match="--out"):
        write_report(folder, [], tmp_path, device="cpu")


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"points": [{"task": "a", "share": 2, "shared": 1, "single": 1}]},
        [{"task": "a"}],
        {"points": [{"task": "a", "share": 1, "shared": 1, "single": 1}], "shares": [{"share": "all"}]},
        {
            "points": [{"task": "a", "share": 1, "shared": 1, "single": 1}],
            "shares": [{"share": 1, "difference_interval": [0]}],
        },
    ],
)
def test_malformed_sharing_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "sharing.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"point|shares"):
        read_sharing(path)


def points(*figures: tuple[float, float, float]) -> list[dict[str, Any]]:
    """Two tasks around the mean figures of (share, shared, single)."""
    return [
        {"task": task, "share": share, "shared": shared + apart, "single": single + apart}
        for task, apart in (("a", 0.1), ("b", -0.1))
        for share, shared, single in figures
    ]


FEW = points((1, 0.82, 0.81), (0.1, 0.70, 0.61), (0.01, 0.41, 0.41))


def test_the_learning_curve_says_how_many_labels_sharing_saves() -> None:
    curve = learning_curve(FEW, {1: [-0.01, 0.03], 0.1: [0.05, 0.13], 0.01: [-0.02, 0.02]})
    assert curve is not None
    assert [(w["share"], w["shared"], w["single"], w["difference"]) for w in curve["shares"]] == [
        (0.01, 0.41, 0.41, 0),
        (0.1, 0.7, 0.61, 0.09),
        (1, 0.82, 0.81, 0.01),
    ]
    needs = [w["single_needs"] for w in curve["shares"]]
    assert needs == [0.01, pytest.approx(0.1 * 10 ** (0.09 / 0.2), rel=1e-3), None]
    assert curve["answer"] == (
        "Does sharing save labels? Yes, with 10 % of the labels. With 10 % the shared model reaches 0.700, +0.0900"
        " (+0.0500 to +0.1300) over one model a task, which needs 28 % of the labels for that."
    )


@pytest.mark.parametrize(
    ("intervals", "answer"),
    [
        ({1: [-0.01, 0.03], 0.1: [-0.01, 0.13], 0.01: [-0.02, 0.02]}, "Not shown: .* largest is \\+0.0900"),
        (
            {1: [-0.03, -0.01], 0.1: [0.01, 0.13], 0.01: [-0.02, 0.02]},
            "depends: .* better with 10 % .* worse with 100 %",
        ),
        ({1: [-0.03, -0.01], 0.1: [-0.1, 0.1], 0.01: [-0.02, 0.02]}, "No: with 100 % of the labels"),
        ({1: [0.01, 0.03], 0.1: [-0.1, 0.1], 0.01: [-0.02, 0.02]}, "does not reach that with any share tried"),
        ({}, "Yes, with 10 %, 100 %.* means without intervals"),
    ],
)
def test_the_answer_follows_the_intervals(intervals: dict[float, list[float]], answer: str) -> None:
    curve = learning_curve(FEW, intervals)
    assert curve is not None
    assert re.search(answer, curve["answer"]), curve["answer"]


def test_a_curve_is_made_only_of_what_can_be_averaged() -> None:
    one = learning_curve(points((1, 0.8, 0.7)), {})
    assert one is not None
    assert "cannot tell" in one["answer"]
    assert learning_curve([FEW[0], FEW[1] | {"metric": "mae"}], {}) is None
    assert learning_curve([point | {"metric": "mae"} for point in FEW], {}) is None
    assert learning_curve([FEW[0], FEW[4]], {}) is None  # no task has both shares
    part = learning_curve(FEW[:5], {share: [0.5, 0.6] for share in (1, 0.1, 0.01)})
    assert part is not None
    assert part["tasks"] == ["a"]
    assert {w["interval"] for w in part["shares"]} == {None}  # those given are of all tasks


def test_the_page_draws_the_curve_and_says_the_answer(folder: Path, tmp_path: Path) -> None:
    shares = [{"share": share, "difference_interval": [0.001, 0.02]} for share in (1, 0.1, 0.01)]
    (tmp_path / "sharing.json").write_text(json.dumps({"points": FEW, "shares": shares}), encoding="utf-8")
    report = write_report(folder, [], tmp_path / "r.html", sharing=tmp_path / "sharing.json", device="cpu")
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert report["learning_curve"]["answer"] in html
    for told in ("Learning curve", "mean over the tasks by labels", "+0.0010 to +0.0200", "shared: 0.7 at 0.1", "28 %"):
        assert told in html
    body = html.partition("<body>")[2].partition("</body>")[0]
    ET.fromstring(f"<body>{body}</body>")  # noqa: S314 - our own page


def test_curves_are_read_nested_or_flat_and_thinned(data: Path, tmp_path: Path) -> None:
    (panel,) = read_curves(data / "metrics.jsonl")
    (line,) = panel["lines"]
    assert (panel["name"], line["name"]) == ("topic", "loss")
    assert len(line["points"]) <= 200
    assert line["points"][-1][0] == 500
    write(
        tmp_path / "flat.jsonl",
        [
            {"step": 1, "losses/topic": 1.0, "held/topic": 2.0, "lr": 0.1, "weights": {"topic": 1}, "note": "x"}
            | {"valid": {"topic on a": {"accuracy": 0.5, "macro_f1": 0.4}}}
        ],
    )
    found = {panel["name"]: [line["name"] for line in panel["lines"]] for panel in read_curves(tmp_path / "flat.jsonl")}
    assert found == {
        "topic": ["losses", "held"],
        "lr": ["lr"],
        "weights: topic": ["weights/topic"],
        "topic on a, valid rows": ["accuracy", "macro f1"],
    }
    with (tmp_path / "flat.jsonl").open("a") as handle:
        handle.write('{"step": 2, "losses/top')  # a run is writing it, or was killed over it
    assert {panel["name"] for panel in read_curves(tmp_path / "flat.jsonl")} == set(found)
    write(tmp_path / "bad.jsonl", [{"loss": 1.0}])
    with pytest.raises(DataError, match=r"bad\.jsonl:1: no number `step`"):
        read_curves(tmp_path / "bad.jsonl")


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_within_the_range_and_few(low: float, span: float) -> None:
    high = low + span
    ticks = round_numbers(low, high)
    assert 1 <= len(ticks) <= 6 or high == low
    assert all(low - span * 1e-6 <= tick <= high + span * 1e-6 for tick in ticks)


@settings(max_examples=25)
@given(st.integers(1, 33), st.data())
def test_charts_are_well_formed_for_any_names_and_counts(size: int, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.text("ab<&\"'屏", min_size=1, max_size=30), min_size=size, max_size=size))
    matrix = data.draw(
        st.lists(st.lists(st.integers(0, 9), min_size=size, max_size=size), min_size=size, max_size=size)
    )
    points = [(i / size, data.draw(st.floats(0, 1)), 3) for i in range(size)]
    line = Line(names[0], [(c, a) for c, a, _ in points], dots=True)
    charts = (
        confusion_chart(matrix, names),
        reliability_chart(points),
        line_chart([line, line], Axis("x", 0, 1), Axis("y", 0, 1), marks=[(0.5, names[0])], title=names[0]),
    )
    for chart in charts:
        ET.fromstring(chart)  # noqa: S314 - our own picture
        assert "nan" not in chart
