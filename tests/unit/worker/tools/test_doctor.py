"""What the doctor finds, and that everything it finds wrong comes with what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from schemas.topics import TOPICS
from tests.tiny_artifact import make_tiny_artifact
from worker.config import (
    AlertsConfig,
    Config,
    KafkaConfig,
    ModelConfig,
    NotifyConfig,
    RedisConfig,
    WebhookConfig,
    WorkerConfig,
)
from worker.errors import MillraceError
from worker.tools import doctor

NOWHERE = Config(
    kafka=KafkaConfig(bootstrap="127.0.0.1:1"),
    redis=RedisConfig(url="redis://127.0.0.1:1/0"),
    model=ModelConfig(artifact="/nowhere/at/all"),
)


def test_where_nothing_runs_every_check_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.tools.doctor.REQUEST_TIMEOUT_S", 0.5)
    monkeypatch.setattr("worker.kafka.admin.REQUEST_TIMEOUT_S", 0.5)
    monkeypatch.setattr("worker.tools.durability.REQUEST_TIMEOUT_S", 0.5)
    checks = {check.name: check for check in doctor.examine(NOWHERE)}
    assert checks["libraries"].well, checks["libraries"].found
    for name in ("kafka", "topics", "durability", "redis", "model"):
        assert not checks[name].well
        assert checks[name].found
        assert checks[name].todo
    assert "kafka.bootstrap" in checks["kafka"].todo
    assert "redis.url" in checks["redis"].todo


def test_a_whole_model_is_verified_on_its_golden_set_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    folder = make_tiny_artifact(tmp_path / "tiny")
    found = {check.name: check for check in doctor._model(ModelConfig(artifact=str(folder), device="cpu"))}
    assert found["model"].well
    assert "golden set within" in found["model"].found
    assert found["device"].found.startswith("cpu")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    damaged = Config(kafka=NOWHERE.kafka, redis=NOWHERE.redis, model=ModelConfig(artifact=str(folder), device="cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "_kafka", lambda kafka: [])
        patch.setattr(doctor, "_topics", lambda kafka: [])
        patch.setattr(doctor, "_durability", lambda config, copies: [])
        patch.setattr(doctor, "_redis", lambda config, durable: [])
        model = doctor.examine(damaged)[-1]
    assert not model.well
    assert "model.safetensors" in model.found


def test_a_missing_topic_of_backfill_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = KafkaConfig(embedded=True, fold_shards=1, backfill={"clicks.2025": "events.click"})
    one = SimpleNamespace(partitions={0: SimpleNamespace(replicas=[1])})
    topics = dict.fromkeys(TOPICS, one)
    monkeypatch.setattr("worker.kafka.admin.admin_client", lambda _: SimpleNamespace(list_topics=lambda **_: there))
    there = SimpleNamespace(topics=topics)
    (check,) = doctor._topics(kafka)
    assert (check.well, check.found) == (False, "clicks.2025: missing")
    assert "millrace topics create" in check.todo
    topics["clicks.2025"] = one
    assert doctor._topics(kafka)[0].well


def test_a_library_of_the_wrong_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["click<8.4", "no-such-package>=1", "msgspec<0.1", "pytest>=8; extra == 'dev'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    (check,) = doctor._libraries()
    assert not check.well
    assert "no-such-package is missing" in check.found
    assert "msgspec" in check.found
    assert "click" not in check.found
    assert "pytest" not in check.found


def test_rules_that_name_a_sink_nobody_configured_are_found(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    body = "rules: [{name: surge, metric: negative_share, threshold: 3, sinks: [chat, chta]}]"
    rules.write_text(body, encoding="utf-8")
    sinks = {"chat": WebhookConfig(url="https://127.0.0.1:9/")}
    config = Config(alerts=AlertsConfig(rules=str(rules)), notify=NotifyConfig(sinks=sinks))
    (check,) = doctor._rules(config)
    assert (check.well, check.found) == (False, "sinks that notify.sinks does not have: chta (rule surge)")
    assert str(rules) in check.todo
    rules.write_text(body.replace(", chta", ""), encoding="utf-8")
    (check,) = doctor._rules(config)
    assert check.well
    (shipped,) = doctor._rules(Config())
    assert shipped.well


def test_a_routing_and_a_model_that_do_not_fit_are_found(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_kafka", "_topics", "_durability", "_redis", "_model"):
        monkeypatch.setattr(doctor, name, lambda *sections, **more: [])
    file = tmp_path / "mine.yaml"
    tiny = str(make_tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny"))

    def found(intents: str, artifact: str = tiny, routing: str = str(file)) -> doctor.Check:
        file.write_text(f"heads: [intent.shop]\nhuman: h\ndefault: d\nintents: {intents}\n")
        config = Config(model=ModelConfig(artifact=artifact), worker=WorkerConfig(routing=routing))
        return next(check for check in doctor.examine(config) if check.name == "routing")

    misspelt = found("{get_refunds: {queue: q}}")
    assert not misspelt.well
    assert "mine.yaml: get_refunds: no intent of intent.shop" in misspelt.found
    assert "is it get_refund?" in misspelt.todo
    some = found("{get_refund: {queue: q}}")
    assert some.well
    assert "1 intents of intent.shop" in some.found
    assert "26 go to d, without a reply: cancel_order, track_order, shop_0, shop_1, shop_2 and 21 more" in some.found
    assert found("{}").well, "one queue for all is a choice"
    twice = found("{get_refund: {queue: q}, get_refund: {queue: r}}")
    assert (twice.well, "line 4: a second `get_refund`" in twice.found) == (False, True)
    assert "mend model" in found("{}", "/nowhere/at/all").todo
    assert "3 intents of intent.shop have a queue (shipped); 24 go to service" in found("{}", tiny, "shipped").found
    assert found("{}", "null", "shipped").found == "27 intents of intent.shop have a queue (shipped)"


def test_a_shipped_routing_of_which_a_model_has_no_intent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"sentiment": ["negative", "positive"], "category": ["a"], "intent.shop": ["退款"]}
    monkeypatch.setattr(doctor, "_labels", lambda artifact: labels)
    (check,) = doctor._routing(Config())
    assert (check.well, check.found.partition("; ")[2]) == (False, "1 go to service, without a reply: 退款")
    assert "worker.routing" in check.todo
    del labels["category"]
    with pytest.raises(MillraceError, match="no head category"):
        doctor._routing(Config())


def test_a_lexicon_of_aspects_that_is_none_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_kafka", "_topics", "_durability", "_redis", "_model", "_routing"):
        monkeypatch.setattr(doctor, name, lambda *sections, **more: [])

    def found(name: str) -> doctor.Check:
        checks = doctor.examine(Config(worker=WorkerConfig(aspects=name)))
        return next(check for check in checks if check.name == "aspects")

    assert found("shipped").found == "delivery, quality, price, packaging, service, refunds (shipped)"
    assert found("none").well
    (tmp_path / "mine.yaml").write_text("taste: ['*y']\n")
    bad = found(str(tmp_path / "mine.yaml"))
    assert (bad.well, "line 1: `*y`" in bad.found) == (False, True)


def test_security_settings_that_the_alerts_role_cannot_use_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_kafka", "_topics", "_durability", "_redis", "_model"):
        monkeypatch.setattr(doctor, name, lambda *sections, **more: [])

    def found(**options: str) -> doctor.Check:
        dotted = {name.replace("_", "."): value for name, value in options.items()}
        checks = doctor.examine(Config(kafka=KafkaConfig(options=dotted)))
        return next(check for check in checks if check.name == "alerts")

    assert found(security_protocol="SASL_SSL", sasl_username="u", sasl_password="p").well
    certificate = found(security_protocol="SSL", ssl_certificate_location="/c.pem", ssl_key_location="/k.pem")
    assert not certificate.well
    assert "ssl.certificate.location, ssl.key.location" in certificate.found
    assert "user with a password" in certificate.todo


def test_a_sink_whose_secret_is_missing_is_found_without_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    sinks = {"chat": WebhookConfig(url="env:NO_SUCH_URL", format="feishu")}
    config = Config(kafka=NOWHERE.kafka, redis=NOWHERE.redis, model=NOWHERE.model, notify=NotifyConfig(sinks=sinks))
    for name in ("_kafka", "_topics", "_durability", "_redis", "_model"):
        monkeypatch.setattr(doctor, name, lambda *sections, **more: [])
    (missing,) = [check for check in doctor.examine(config) if check.name == "notify"]
    assert (missing.name, missing.well) == ("notify", False)
    assert "NO_SUCH_URL" in missing.found
    monkeypatch.setenv("NO_SUCH_URL", "https://127.0.0.1:9/SECRET")
    (there,) = [check for check in doctor.examine(config) if check.name == "notify"]
    assert there.well
    assert "chat" in there.found
    assert "SECRET" not in there.found
