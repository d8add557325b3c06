"""The commands about the model, end to end on a tiny artifact: what they print, what they write, how they fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from model.artifact import Artifact
from tests.click_head import click_rows
from tests.tiny_artifact import make_tiny_artifact
from tests.toy_training import make_workshop
from worker.cli.app import main

TEXTS = ["good guitar", "bad card, late order", "please refund my order", "快递很差", "屏幕坏了，退款", "thank you"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_artifact(folder / "tiny")
    rows = [
        {"text": f"{text} {i}", "sentiment": "negative" if i % 2 else "positive", "shop": f"s{i % 2}"}
        for i, text in enumerate(TEXTS * 4)
    ]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return folder


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def printed(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_evaluate_tells_slices_and_answers_among_the_labels_given(folder: Path) -> None:
    common = ("evaluate", "--artifact", folder / "tiny", "--task", "sentiment", "--data", folder / "rows.jsonl")
    flat = printed(*common)
    assert flat["n"] == 24
    full = printed(*common, "--slice", "shop", "--labels", "negative,neutral,positive")
    assert full["intervals"]["accuracy"][0] <= full["accuracy"] <= full["intervals"]["accuracy"][1]
    assert {cut["by"] for cut in full["slices"]} >= {"shop"}
    assert "shop" in run(*common, "--slice", "shop").stdout
    refused = run(*common, "--labels", "negative,neutral")
    assert refused.exit_code == 6
    assert "positive" in refused.stderr


def test_evaluate_click_tells_what_late_outcomes_cost(folder: Path) -> None:
    rows = [row | {"purchased": i % 2} for i, row in enumerate(click_rows(120))]
    (folder / "clicks.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    common = ("evaluate", "--artifact", folder / "tiny", "--data", folder / "clicks.jsonl")
    found = printed(*common, "--task", "click", "--delay-s", 30)
    assert [(late["delay_s"], late["at_once"]) for late in found["delays"]] == [(30, True), (30, False)]
    assert "shown at once" in run(*common, "--task", "click", "--delay-s", 30).stdout
    assert printed(*common, "--task", "conversion")["n"] == 120
    refused = run(*common, "--task", "sentiment", "--delay-s", 30)
    assert refused.exit_code == 6
    assert "--delay-s is for clicks" in refused.stderr


def test_cold_and_warm_users_are_told_apart(folder: Path, tmp_path: Path) -> None:
    rows = click_rows(160)
    for name, own in (("before", rows[:100]), ("clicks", rows[100:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)), encoding="utf-8")
    common = ("evaluate", "--artifact", folder / "tiny", "--task", "click", "--data", tmp_path / "clicks.jsonl")
    history = ("--history", tmp_path / "before.jsonl")
    assert "slices" not in printed(*common, *history)
    (cut,) = printed(*common, *history, "--detail")["slices"]
    assert sum(part["n"] for part in cut["slices"]) == 60
    assert "user's earlier events" in run(*common, *history, "--detail").stdout
    report = ("report", "--artifact", folder / "tiny", "--out", tmp_path / "report.html")
    trial = ("--trial", f"click={tmp_path / 'clicks.jsonl'}")
    (task,) = printed(*report, *trial, "--history", f"click={tmp_path / 'before.jsonl'}")["tasks"]
    assert task["slices"] == [cut]
    for wrong, says in (("sentiment=x", "no --trial measures"), ("click=gone.jsonl", "there is no file gone.jsonl")):
        refused = run(*report, *trial, "--history", wrong)
        assert refused.exit_code == 6
        assert says in refused.stderr


def test_rows_without_a_label_are_left_out_and_said(folder: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "sentiment": label} for text, label in zip(TEXTS, ["negative", None] * 3, strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    common = ("evaluate", "--artifact", folder / "tiny", "--task", "sentiment", "--data", tmp_path / "rows.jsonl")
    for detail in ((), ("--detail",)):
        found = printed(*common, *detail)
        assert (found["n"], found["unlabelled"]) == (3, 3)
        assert "unlabelled" in run(*common, *detail).stdout
    report = ("report", "--artifact", folder / "tiny", "--trial", f"sentiment={tmp_path / 'rows.jsonl'}")
    assert run(*report, "--out", tmp_path / "r.html").exit_code == 0
    assert "3 more without a label" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_report_writes_a_page_without_outside_resources(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    trial = f"sentiment={folder / 'rows.jsonl'}"
    assert run("report", "--artifact", folder / "tiny", "--trial", trial, "--out", out).exit_code == 0
    page = out.read_text(encoding="utf-8")
    assert "sentiment" in page
    assert "src=" not in page.replace('src="data:', "")
    assert json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    (tmp_path / "variants.json").write_text("{}", encoding="utf-8")
    refused = run("report", "--artifact", folder / "tiny", "--variants", tmp_path / "variants.json", "--out", out)
    assert refused.exit_code == 6
    assert "variants.json: an object with numbers" in refused.stderr
    refused = run("report", "--artifact", folder / "tiny", "--trial", "sentiment", "--out", out)
    assert refused.exit_code == 6
    assert "TASK=FILE" in refused.stderr


def test_files_are_read_where_the_options_say(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"subject": text, "body": "my order", "mood": "negative" if i % 2 else "positive"}
        for i, text in enumerate(TEXTS)
    ]
    (tmp_path / "mails.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    asked = ("--artifact", folder / "tiny")
    fields = ("--field", "subject", "--field", "body")
    data = ("--task", "sentiment", "--data", tmp_path / "mails.jsonl")
    flat = printed("evaluate", *asked, *data, *fields, "--label-field", "mood")
    assert flat["n"] == len(TEXTS)
    assert "mae" not in flat
    assert "label field 'sentiment' is missing" in run("evaluate", *asked, *data, *fields).stderr
    report = ("report", *asked, "--trial", f"sentiment={tmp_path / 'mails.jsonl'}", "--out", tmp_path / "report.html")
    told = ("--field", "sentiment=subject", "--field", "sentiment=body", "--label-field", "sentiment=mood")
    (task,) = printed(*report, *told)["tasks"]
    assert task["log_loss"] == flat["log_loss"]
    clicks = run("report", *asked, "--trial", f"click={folder / 'rows.jsonl'}", "--field", "click=subject")
    assert "events of click have their own" in clicks.stderr
    for wrong in (("--field", "subject"), ("--label-field", "stars=mood"), ("--field", "sentiment=")):
        refused = run(*report, *wrong)
        assert refused.exit_code == 6
        assert " ".join(wrong) in refused.stderr


def test_explain_tells_which_parts_moved_the_score(folder: Path) -> None:
    for method in ("occlusion", "gradients"):
        found = printed(
            *("explain", "--artifact", folder / "tiny", "--task", "sentiment", "--text", "快递 bad"),
            *("--label", "negative", "--method", method),
        )
        assert found["label"] == "negative"
        assert [part["text"] for part in found["parts"]]


def test_active_and_label_write_their_files(folder: Path, tmp_path: Path) -> None:
    common = ("--artifact", folder / "tiny", "--task", "sentiment", "--data", folder / "rows.jsonl")
    picked = printed("active", *common, "--count", 5, "--out", tmp_path / "pick.jsonl")
    assert picked["chosen"] == len((tmp_path / "pick.jsonl").read_text().splitlines()) == 5
    sure = printed("label", *common, "--confidence", 0.34, "--out", tmp_path / "sure.jsonl")
    assert sure["written"] == len((tmp_path / "sure.jsonl").read_text().splitlines())


def test_a_run_is_trained_exported_again_and_added_to(tmp_path: Path) -> None:
    shop = make_workshop(tmp_path)
    out = tmp_path / "run"
    recipe = ("--recipe", shop / "recipe.yaml", "--data", shop)
    refused = run("export", *recipe, "--out", shop)
    assert refused.exit_code == 6
    assert "train first" in refused.stderr
    assert run("train", *recipe, "--out", out, "--minutes", 0.01).exit_code == 0
    first = Artifact.load(out / "artifact")
    (out / "report.html").unlink()
    assert run("export", *recipe, "--out", out, "--no-report").exit_code == 0
    assert not (out / "report.html").exists()
    assert run("export", *recipe, "--out", out).exit_code == 0
    assert first.manifest["version"] in (out / "report.html").read_text(encoding="utf-8")
    assert Artifact.load(out / "artifact").manifest["version"] == first.manifest["version"]
    if not torch.cuda.is_available():
        without = run("train", *recipe, "--out", tmp_path / "gpu", "--device", "cuda")
        assert without.exit_code == 6
        assert "no CUDA device" in without.stderr
    again = run("train", *recipe, "--out", out)
    assert again.exit_code == 6
    assert "--resume" in again.stderr
    for option in (("--minutes", "5"), ("--resume",), ("--tensorboard",)):
        refused = run("train", *recipe, "--out", tmp_path / "more", "--onto", out / "artifact", *option)
        assert refused.exit_code == 6
        assert "do nothing with --onto" in refused.stderr
    more = run("train", *recipe, "--out", tmp_path / "more", "--onto", out / "artifact")
    assert more.exit_code == 0, more.output
    assert more.stdout.endswith(f"artifact in {tmp_path}/more/artifact\nreport in {tmp_path}/more/report.html\n")
    assert json.loads((tmp_path / "more" / "report.json").read_text(encoding="utf-8"))["curves"] is None
    assert Artifact.load(tmp_path / "more" / "artifact").manifest["space"] == first.manifest["space"]


def test_labels_that_look_like_markup_are_told_as_they_are(tmp_path: Path) -> None:
    rows = [{"text": f"{i} times", "topic": "[promo]" if i else "[/quality]"} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        "{name: x, body: nowhere, heads: {topic: {}}, datasets: [{name: d, file: rows.jsonl, labels: {topic: topic}}]}"
    )
    recipe = ("--recipe", tmp_path / "recipe.yaml", "--data", tmp_path)
    refused = run("train", *recipe, "--out", tmp_path / "out", "--minutes", 1)
    assert refused.exit_code == 6, refused.output
    assert "'[/quality]'" in refused.stdout
