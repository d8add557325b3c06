"""Training end to end on a toy that can be learned, and on again after it was stopped."""

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from safetensors.numpy import load_file
from transformers import DistilBertConfig, DistilBertModel

from model.artifact import MANIFEST, WEIGHTS, Artifact
from model.assess.evaluate import evaluate_texts
from model.errors import DataError, ModelError
from model.golden import verify
from model.network import Network
from model.scoring import Floats, Prepared, load_scorer
from model.training import train as training
from model.training.export import encode
from model.training.recipe import load_recipe
from model.training.trials import check_trials
from model.training.warmstart import warm_start
from model.training.watch import METRICS
from model.training.workshop import FirstRows, furnish, new_network, with_body
from tests.toy_training import make_body, make_workshop, run, sentence, write_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


def test_a_separable_toy_is_learned(workshop: Path, tmp_path: Path) -> None:
    folder = run(workshop, tmp_path)
    assert verify(folder, device="cpu") < 0.01
    scorer, rng = load_scorer(folder, device="cpu"), random.Random(99)
    for head, labels in (("sentiment", ("negative", "positive")), ("intent.shop", ("refund", "track"))):
        truth = list(labels) * 50
        figures = evaluate_texts(scorer, head, [sentence(label, rng) for label in truth], truth)
        assert figures["accuracy"] >= 0.95, (head, figures)
    manifest = Artifact.load(folder).manifest
    assert [m["task"] for m in manifest["metrics"]] == ["sentiment"]
    assert set(manifest["data"]) == {"mood.jsonl", "shop.jsonl"}
    assert {name: (head["kind"], head["text"], head["field"]) for name, head in manifest["heads"].items()} == {
        "sentiment": ("classes", ["text"], "sentiment"),
        "intent.shop": ("classes", ["text"], "intent"),
    }
    with pytest.raises(ModelError, match="--resume"):
        run(workshop, tmp_path)


def test_training_ends_with_a_report_of_the_figures_that_the_artifact_has(workshop: Path, tmp_path: Path) -> None:
    told = io.StringIO()
    plain, folder = run(workshop, tmp_path / "plain"), run(workshop, tmp_path / "told", report=True, tell=told)
    assert not list((tmp_path / "plain").glob("report.*"))
    for name in (WEIGHTS, MANIFEST):  # a report is only looked at
        assert (folder / name).read_bytes() == (plain / name).read_bytes()
    page = tmp_path / "told" / "report.html"
    assert f"report in {page}" in told.getvalue()
    manifest = Artifact.load(folder).manifest
    report = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert report["artifact"]["version"] == manifest["version"]
    (task,), (recorded,) = report["tasks"], manifest["metrics"]
    assert {name: task[name] for name in recorded if name != "files"} == {
        name: value for name, value in recorded.items() if name != "files"
    }
    assert recorded["files"] == {task["file"]: task["sha256"]}
    assert recorded["linear_accuracy"] > 0.9
    assert [c["label"] for c in task["classes"]] == ["negative", "positive"]
    assert {"sentiment", "intent.shop"} <= {panel["name"] for panel in report["curves"]}
    html = page.read_text(encoding="utf-8")
    assert "Confusion" in html
    assert "sentiment by step" in html


def test_a_valid_file_of_rows_out_of_scope_alone_has_no_floor(tmp_path: Path) -> None:
    shop = make_workshop(tmp_path)
    (shop / "outside.jsonl").write_text('{"text": "good", "intent": "oos"}\n', encoding="utf-8")
    content = yaml.safe_load((shop / "recipe.yaml").read_text(encoding="utf-8"))
    content["evaluation"] = [{"task": "intent.shop", "file": "outside.jsonl"}]
    (shop / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (figures,) = Artifact.load(run(shop, tmp_path / "out", tokens=2000)).manifest["metrics"]
    assert figures["n"] == 1
    assert "linear_accuracy" not in figures


def test_watching_valid_rows_changes_no_byte_of_the_artifact(workshop: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    watched = {"tensorboard": True, "valid_every": 7, "valid_rows": 20, "conflict_every": 3, "held_every": 5}
    content["training"] |= watched
    content["evaluation"].append({"task": "sentiment", "file": "again.jsonl"})
    (workshop / "again.jsonl").write_bytes((workshop / "mood.jsonl").read_bytes() + b'\n{"text": "good"}')
    (workshop / "watched.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    plain = run(workshop, tmp_path / "plain")
    folder = run(workshop, tmp_path / "watched", recipe="watched.yaml", report=True)
    assert (folder / WEIGHTS).read_bytes() == (plain / WEIGHTS).read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "watched" / METRICS).read_text().splitlines()]
    asked = [line for line in lines if "valid" in line]
    assert [line["step"] for line in asked] == [*range(7, len(lines), 7), len(lines)]
    assert asked[-1]["valid"].keys() == {"sentiment on mood", "sentiment on again"}
    assert asked[-1]["valid"]["sentiment on mood"]["accuracy"] > 0.9
    panels = json.loads((tmp_path / "watched" / "report.json").read_text(encoding="utf-8"))["curves"]
    (panel,) = [panel for panel in panels if panel["name"] == "sentiment on mood, valid rows"]
    assert [line["name"] for line in panel["lines"]] == ["accuracy", "macro f1"]


def test_valid_rows_of_users_seen_in_training_are_told_from_those_of_new_ones(tmp_path: Path) -> None:
    shop = make_workshop(tmp_path)
    rows = [json.loads(line) for line in (shop / "mood.jsonl").read_text(encoding="utf-8").splitlines()]
    for i, row in enumerate(rows):
        row["user_id"] = f"u{i % 30}"
    valid = [row | {"user_id": f"u{i}" if i % 2 else f"new{i}"} for i, row in enumerate(rows[:20])]
    valid.append({"text": "good", "user_id": "u1", "sentiment": None})
    for name, made in (("mood", rows), ("valid", valid)):
        (shop / f"{name}.jsonl").write_text("\n".join(map(json.dumps, made)), encoding="utf-8")
    content = yaml.safe_load((shop / "recipe.yaml").read_text(encoding="utf-8"))
    content["evaluation"] = [{"task": "sentiment", "file": "valid.jsonl"}]
    (shop / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    told = io.StringIO()
    run(shop, tmp_path / "out", tokens=2000, report=True, tell=told)
    (task,) = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["tasks"]
    (cut,) = [cut for cut in task["slices"] if cut["by"] == "user's earlier events"]
    assert {part["value"]: part["n"] for part in cut["slices"]} == {"none": 10, "5–19": 10}  # ten rows each to train on
    assert task["unlabelled"] == 1
    assert "valid.jsonl: 1 rows have no sentiment" in told.getvalue()


def test_a_few_rows_make_an_artifact_that_is_not_sure_of_itself(tmp_path: Path) -> None:
    few = make_workshop(tmp_path)
    for name in ("mood", "shop"):
        rows = (few / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        (few / f"{name}.jsonl").write_text("\n".join(rows[:20]), encoding="utf-8")
    content = yaml.safe_load((few / "recipe.yaml").read_text(encoding="utf-8"))
    recipe = content | {"calibration_share": 0.06, "space": []}
    (few / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    artifact = Artifact.load(run(few, tmp_path / "out", tokens=2000))
    heads = artifact.manifest["heads"]
    assert all(head["calibration_rows"] < 6 for head in heads.values())
    assert all(0.45 < head["temperature"] < 2.2 for head in heads.values())
    directions = (artifact.tensors["space.projection"] != 0).any(0).sum()
    assert directions > sum(head["calibration_rows"] for head in heads.values())  # training rows span the space too


def test_first_weights_are_those_of_a_discriminant_and_texts_are_encoded_once(workshop: Path, tmp_path: Path) -> None:
    recipe = replace(load_recipe(workshop / "recipe.yaml"), warm_rows=4)
    asked = list[int]()

    def counted(network: Network, prepared: list[Prepared]) -> Floats:
        asked.append(len(prepared))
        return encode(network, prepared)

    plain = furnish(recipe, workshop, tmp_path, Console(quiet=True))
    shop = replace(plain, first=FirstRows(counted))
    first, again = (new_network(recipe, shop, warm=True)[0] for _ in range(2))
    assert len(asked) == 1
    other = new_network(replace(recipe, seed=recipe.seed + 1), shop, warm=True)[0]
    assert sum(asked) <= len({text.ids.tobytes() for text in shop.corpus.prepared})
    cold = new_network(recipe, shop, warm=False)[0]
    body = cold.encoder.config.hidden
    expected = Network(cold.encoder, cold.bag, {name: len(labels) for name, labels in shop.corpus.heads.items()})
    warm_start(expected, shop.corpus, 4, recipe.seed, lambda texts: encode(expected, list(texts)))
    for head in shop.corpus.heads:
        own, same, by_hand = (n.head(head).weight.detach()[:, :body].numpy() for n in (first, again, expected))
        np.testing.assert_array_equal(own, same)
        np.testing.assert_allclose(own, by_hand, atol=1e-4)
        assert np.abs(own - other.head(head).weight.detach()[:, :body].numpy()).max() > 1e-3


def test_a_damaged_checkpoint_is_refused(workshop: Path, tmp_path: Path) -> None:
    run(workshop, tmp_path)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ModelError, match="no readable checkpoint"):
        run(workshop, tmp_path, resume=True)


def test_a_malformed_file_is_refused_before_training(workshop: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("mood.jsonl", "shop.jsonl"):
        (data / name).write_bytes((workshop / name).read_bytes() + b'\n{"text": 5}\n')
    with pytest.raises(DataError, match=r"mood\.jsonl:301"):
        training.train(
            workshop / "recipe.yaml", data, tmp_path / "out", minutes=1, resume=False, console=Console(quiet=True)
        )
    assert training.main(["--recipe", "none.yaml", "--data", str(data), "--out", str(tmp_path / "o")]) == 2


def test_measuring_the_rate_leaves_the_weights_alone(workshop: Path, tmp_path: Path) -> None:
    first = run(workshop, tmp_path / "given")
    (tmp_path / "measured").mkdir()
    recipe = workshop / "recipe.yaml"
    training.train(recipe, workshop, tmp_path / "measured", minutes=0.005, resume=False, console=Console(quiet=True))
    plan = json.loads((tmp_path / "measured" / "plan.json").read_text())
    assert plan["tokens"] > 0
    assert plan["rate"] > 0
    assert (
        Artifact.load(first).manifest["encoder"]
        == Artifact.load(tmp_path / "measured" / "artifact").manifest["encoder"]
    )


def test_a_network_learns_from_what_teachers_say_of_rows_they_have_not_seen(workshop: Path, tmp_path: Path) -> None:
    body = make_body(workshop / "other", hidden=48)  # a teacher of another width, with a tokenizer of its own
    teachers = [{}, {"body": str(body), "datasets": ["mood"], "training": {"head_lr": 0.02}}, {"datasets": ["shop"]}]
    dropped = {"token_drop": 0.1, "body_dropout": 0.1}
    recipe = write_recipe(workshop, "taught.yaml", teachers=teachers, teacher_folds=3, tensorboard=True, **dropped)
    folders = [tmp_path / f"teacher-{teacher}-{fold}" for teacher in range(3) for fold in range(3)]
    tokens = 40_000  # a quarter of them for the network, a twelfth for each of its teachers
    artifact = run(workshop, tmp_path, recipe=recipe.name, tokens=tokens)
    scorer, rng = load_scorer(artifact, device="cpu"), random.Random(99)
    truth = ["negative", "positive"] * 50
    figures = evaluate_texts(scorer, "sentiment", [sentence(label, rng) for label in truth], truth)
    assert figures["accuracy"] >= 0.95
    last = json.loads((folders[3] / METRICS).read_text().splitlines()[-1])
    assert last["valid"]["sentiment"]["accuracy"] > 0.7  # of a teacher that reads the valid rows with its own tokenizer
    answered = [load_file(folder / "answers.safetensors") for folder in folders[:3]]
    rows = np.concatenate([answers["sentiment.rows"] for answers in answered])
    assert len(rows) == len(set(rows.tolist())) > 200  # each of them by the one network that had not seen it
    assert "intent.shop.rows" not in load_file(folders[3] / "answers.safetensors")
    weights = (artifact / WEIGHTS).read_bytes()
    (tmp_path / "checkpoint.safetensors").unlink()  # stopped before the network itself began
    with pytest.raises(ModelError, match="--resume"):
        run(workshop, tmp_path, recipe=recipe.name, tokens=tokens)
    (folders[4] / "answers.safetensors").unlink()  # or within a teacher
    again = run(workshop, tmp_path, recipe=recipe.name, tokens=tokens, resume=True)
    assert (again / WEIGHTS).read_bytes() == weights


@pytest.mark.parametrize(
    ("teachers", "folds", "word"),
    [([{"datasets": ["mood"]}], 5, "shop"), ([{"datasets": ["none"]}], 5, "none"), ([{}], 1, "2")],
)
def test_a_recipe_whose_teachers_leave_rows_unanswered_is_refused(
    workshop: Path, teachers: list[dict[str, Any]], folds: int, word: str
) -> None:
    recipe = write_recipe(workshop, "refused.yaml", teachers=teachers, teacher_folds=folds)
    with pytest.raises(DataError, match=f"teacher.*{word}"):
        load_recipe(recipe)


def test_a_bound_of_tokens_holds_where_the_minutes_would_give_more(workshop: Path, tmp_path: Path) -> None:
    recipe = write_recipe(workshop, "short.yaml", tokens_max=2000)
    training.train(recipe, workshop, tmp_path, minutes=5, resume=False, console=Console(quiet=True))
    assert json.loads((tmp_path / "plan.json").read_text())["tokens"] == 2000


def test_a_recipe_may_say_only_what_differs_from_another(workshop: Path) -> None:
    (workshop / "more.yaml").write_text(
        "base: recipe.yaml\ntraining: {accumulate: 3}\ndatasets: [{name: mood, weight: 2.0}]\n", encoding="utf-8"
    )
    base, more = (load_recipe(workshop / name) for name in ("recipe.yaml", "more.yaml"))
    assert more.training == replace(base.training, accumulate=3)
    assert more.datasets == [replace(base.datasets[0], weight=2.0), base.datasets[1]]
    assert more.heads == base.heads
    (workshop / "lost.yaml").write_text("base: none.yaml\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"none\.yaml"):
        load_recipe(workshop / "lost.yaml")
    (workshop / "lost.yaml").write_text("base: round.yaml\n", encoding="utf-8")
    (workshop / "round.yaml").write_text("base: lost.yaml\n", encoding="utf-8")
    with pytest.raises(DataError, match="based on itself"):
        load_recipe(workshop / "lost.yaml")


@pytest.mark.parametrize(
    "bare", ["{name: x, body: b}", "{name: x, heads: {h: {}}, datasets: [{name: d, file: f, labels: {h: y}}]}"]
)
def test_a_recipe_without_body_or_heads_trains_nothing(workshop: Path, tmp_path: Path, bare: str) -> None:
    (workshop / "bare.yaml").write_text(bare, encoding="utf-8")
    with pytest.raises(DataError, match="must name `body` and `heads`"):
        run(workshop, tmp_path, recipe="bare.yaml")


def test_texts_longer_than_the_body_reads_are_refused(workshop: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    content["text"] |= {"max_tokens": 33}
    (workshop / "long.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"text\.max_tokens: body .* reads 32 tokens at most, not 33"):
        run(workshop, tmp_path, recipe="long.yaml")


def test_texts_longer_than_a_padded_body_reads_are_refused(workshop: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    body = make_body(tmp_path / "padded")  # whose tokenizer stays
    shape = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 20}
    DistilBertModel(DistilBertConfig(vocab_size=160, **shape)).save_pretrained(body)
    recipe = content | {"body": str(body), "vocabulary": 0}
    (workshop / "padded.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    says = r"text\.max_tokens: body .* reads 20 tokens at most, not 24"
    with pytest.raises(DataError, match=says):
        run(workshop, tmp_path, recipe="padded.yaml")
    shop = furnish(load_recipe(workshop / "recipe.yaml"), workshop, tmp_path, Console(quiet=True))
    with pytest.raises(DataError, match=says):
        with_body(shop, str(body), 24)


def test_a_budget_too_small_for_one_row_is_told(workshop: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 tokens of training are too few for one row; give more tokens or minutes"):
        run(workshop, tmp_path, tokens=1)


@pytest.mark.parametrize("vocabulary", [0, 200])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": ["body"]}, r"texts\.jsonl:1: field 'body' is missing"),
        ({"file": "torn.jsonl"}, r"torn\.jsonl:2: not JSON"),
        ({"file": "empty.jsonl"}, r"empty\.jsonl: no rows; space needs texts"),
    ],
)
def test_texts_of_the_vector_space_are_read_before_training(
    workshop: Path, tmp_path: Path, vocabulary: int, change: dict[str, Any], says: str
) -> None:
    row = '{"text": "good"}\n'
    for name, lines in (("texts", row), ("torn", f"{row}{{"), ("empty", "")):
        (workshop / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    content = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    content |= {"vocabulary": vocabulary, "space": [{"file": "texts.jsonl", "text": ["text"], "rows": 5} | change]}
    (workshop / "space.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(DataError, match=says):
        run(workshop, tmp_path, recipe="space.yaml")
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("experts", ["none", "ple"])
def test_a_head_may_have_a_name_that_torch_has_for_itself(workshop: Path, tmp_path: Path, experts: str) -> None:
    content = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    content["heads"] = {"type": {}, "update": {"threshold": True}}
    content["datasets"][0] |= {"labels": {"type": "sentiment"}, "partial": ["type"]}
    content["datasets"][1] |= {"labels": {"update": "intent"}, "outside": {"update": ["refund", "track"]}}
    content["bag"]["targets"] = [["mood", "type"]]
    content["evaluation"] = [{"task": "type", "file": "mood.jsonl"}]
    content["training"] |= {"experts": experts}
    (workshop / "owned.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    artifact = Artifact.load(run(workshop, tmp_path, recipe="owned.yaml", tokens=4000))
    assert {"heads.type.weight", "heads.type.bias", "heads.update.weight"} <= set(artifact.tensors)
    assert verify(artifact.folder, device="cpu") < 0.01
    assert artifact.manifest["metrics"][0]["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        ({"sentiment": {"labels": ["bad", "good"]}}, r"mood\.jsonl:1: label 'negative' is unknown to head 'sentiment'"),
        ({"sentiment": {"kind": "score"}}, r"mood\.jsonl:1: label 'negative' of head 'sentiment' is no number"),
    ],
)
def test_a_label_that_its_head_cannot_have_is_refused_with_its_line(
    workshop: Path, tmp_path: Path, heads: dict[str, Any], says: str
) -> None:
    content = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    (workshop / "labels.yaml").write_text(
        yaml.safe_dump(content | {"heads": content["heads"] | heads}), encoding="utf-8"
    )
    with pytest.raises(DataError, match=says):
        run(workshop, tmp_path, recipe="labels.yaml")


@pytest.mark.parametrize(
    ("trial", "line", "says"),
    [
        ({"task": "urgency"}, None, "task 'urgency' is no head of recipe toy"),
        ({"task": "sentiment"}, {"text": "x", "sentiment": 5.5}, r"valid\.jsonl:2: label field 'sentiment' is float"),
        ({"task": "sentiment"}, {"text": "x", "sentiment": "great"}, r"valid\.jsonl:2: label 'great' is unknown"),
        ({"task": "sentiment", "text": ["body"]}, None, r"valid\.jsonl:1: field 'body' is missing"),
        ({"task": "sentiment", "text": ["titel", "text"]}, None, r"valid\.jsonl: no row has the text field 'titel'"),
        ({"task": "sentiment", "label": "language"}, None, r"valid\.jsonl:1: label 'en' is unknown"),
        ({"task": "sentiment", "without": "gone.jsonl"}, None, r"gone\.jsonl"),
        ({"task": "sentiment", "history": ["gone.jsonl"]}, None, r"gone\.jsonl"),
    ],
)
def test_a_trial_that_cannot_be_judged_is_refused_before_training(
    workshop: Path, tmp_path: Path, trial: dict[str, Any], line: dict[str, str] | None, says: str
) -> None:
    rows = [{"text": "good", "sentiment": "positive", "language": "en"}, *([line] if line else [])]
    (workshop / "valid.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    content = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    content["evaluation"] = [{"file": "valid.jsonl"} | trial]
    (workshop / "judged.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(DataError, match=says):
        run(workshop, tmp_path, recipe="judged.yaml")
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_valid_files_that_are_not_there_are_told_and_data_sets_may_differ_in_their_text(
    workshop: Path,
) -> None:
    rows = [{"title": "so", "text": "good", "sentiment": "positive"}, {"text": "bad", "sentiment": "negative"}]
    (workshop / "titled.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    content = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    titled = {"name": "titled", "file": "titled.jsonl", "text": ["title", "text"], "labels": {"sentiment": "sentiment"}}
    content["datasets"].append(titled)  # `mood.jsonl` below has no title
    files = {"sentiment": ("mood.jsonl", "valdi.jsonl"), "intent.shop": ("valdi.jsonl", "gone.jsonl")}
    content["evaluation"] = [{"task": task, "file": file} for task, own in files.items() for file in own]
    (workshop / "absent.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    recipe, told = load_recipe(workshop / "absent.yaml"), list[str]()
    labels = {"sentiment": ["negative", "neutral", "positive"], "intent.shop": ["refund", "track"]}
    check_trials(recipe, labels, workshop, told.append)
    assert told == [
        f"evaluation: {workshop / file} is not there and is passed over; {tasks} will have no figures on it"
        for file, tasks in (("valdi.jsonl", "sentiment, intent.shop"), ("gone.jsonl", "intent.shop"))
    ]
