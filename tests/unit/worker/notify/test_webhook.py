"""What is sent to whom, how it is signed, and what answers mean. Signatures are checked by other people's code."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import urllib.parse
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import msgspec
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from schemas.evidence import Evidence, TellingText
from schemas.scores import Alert
from tests.alerts_made import EVIDENCE, made, notice
from worker.notify.mail import mail
from worker.notify.notice import MAX_TITLE_CHARS, lines, title
from worker.notify.webhook import Format, dingtalk_url, feishu_signature, request, verdict

NOW_MS = 1_800_000_000_123


def body(form: Format, **fields: Any) -> Any:
    return msgspec.json.decode(request(notice(**fields), form, "en", "https://x/y", None, NOW_MS).body)


def test_the_generic_body_is_the_alert_as_published_with_its_incident() -> None:
    alert = made(evidence=EVIDENCE)
    told = body("json", alert=alert)
    assert told["type"] == "alert.opened"
    assert datetime.datetime.fromisoformat(told["timestamp"]).timestamp() == NOW_MS / 1000
    assert msgspec.convert(told["data"]["alert"], Alert) == alert
    assert told["data"]["incident_id"] == alert.alert_id
    assert told["data"]["together"] == ["category:灯"]


@pytest.mark.parametrize(
    "secret", ["plain secret 密", "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()]
)
def test_the_standard_webhooks_library_accepts_our_signature_and_no_other(secret: str) -> None:
    # The library wants base64 whatever the prefix; a plain secret is signed with its own bytes.
    theirs = secret if secret.startswith("whsec_") else base64.b64encode(secret.encode()).decode()
    now_ms = int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)
    sent = request(notice(), "json", "en", "https://x", secret, now_ms)
    assert Webhook(theirs).verify(sent.body, sent.headers)["type"] == "alert.opened"
    with pytest.raises(WebhookVerificationError):
        Webhook(theirs).verify(sent.body.replace(b"item:lamp", b"item:lump"), sent.headers)


def test_repeats_bear_the_same_id() -> None:
    first, again = (request(notice(), "json", "en", "https://x", "s", NOW_MS + each) for each in (0, 60_000))
    assert first.headers["webhook-id"] == again.headers["webhook-id"]
    assert first.headers["webhook-signature"] != again.headers["webhook-signature"]
    later = request(notice(made(status="resolved", minute=9)), "json", "en", "https://x", "s", NOW_MS)
    assert later.headers["webhook-id"] != first.headers["webhook-id"]


def test_feishu_is_signed_as_its_manual_says() -> None:
    sent = msgspec.json.decode(request(notice(), "feishu", "zh", "https://x", "密钥", NOW_MS).body)
    stamp = str(NOW_MS // 1000)
    key = f"{stamp}\n密钥".encode()
    assert sent["timestamp"] == stamp
    assert sent["sign"] == base64.b64encode(hmac.new(key, b"", digestmod=hashlib.sha256).digest()).decode()
    assert feishu_signature(1599360473, "demo") == {
        "timestamp": "1599360473",
        "sign": base64.b64encode(hmac.digest(b"1599360473\ndemo", b"", "sha256")).decode(),
    }
    assert "sign" not in body("feishu")


def test_dingtalk_is_signed_in_its_query() -> None:
    url = dingtalk_url("https://oapi/robot/send?access_token=T", NOW_MS, "SECret")
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    expected = base64.b64encode(hmac.digest(b"SECret", f"{NOW_MS}\nSECret".encode(), "sha256")).decode()
    assert query == {"access_token": ["T"], "timestamp": [str(NOW_MS)], "sign": [expected]}
    assert request(notice(), "dingtalk", "en", "https://x/y", None, NOW_MS).url == "https://x/y"


def test_a_review_can_neither_format_a_message_nor_call_everybody() -> None:
    evil = made(
        "item:<!channel> <at id=all></at> *x*",
        evidence=Evidence(
            seen=1, texts=[TellingText(excerpt="<!everyone> @all", p_negative=1, event_id="e", event_time_ms=0)]
        ),
    )
    slack = body("slack", alert=evil)
    assert "<" not in slack["text"]
    assert {block["text"]["type"] for block in slack["blocks"]} == {"plain_text"}
    feishu = body("feishu", alert=evil)["card"]
    assert {element["text"]["tag"] for element in feishu["elements"]} == {"plain_text"}
    assert feishu["header"]["title"]["tag"] == "plain_text"
    assert body("dingtalk", alert=evil).keys() == {"msgtype", "text"}, "no markdown, and nobody in `at`"


def test_bounds_of_slack_hold_for_any_evidence() -> None:
    long = Evidence(
        seen=9, texts=[TellingText(excerpt="长" * 5000, p_negative=1, event_id="e", event_time_ms=0) for _ in range(9)]
    )
    slack = body("slack", alert=made("item:" + "x" * 400, evidence=long))
    assert len(slack["blocks"][0]["text"]["text"]) <= 150
    assert len(slack["blocks"][1]["text"]["text"]) <= 3000


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("status", ["opened", "worsening", "improving", "resolved"])
@pytest.mark.parametrize("evidence", [None, EVIDENCE])
def test_words_tell_what_where_how_bad_and_why(
    language: Literal["en", "zh"], status: str, evidence: Evidence | None
) -> None:
    told = notice(made(status=status, evidence=evidence))
    everything = "\n".join([title(told, language), *lines(told, language)])
    for part in ("item:lamp", "91%", "15%", "20", "3.0", "8.6", "2025-02-19", "m1", "millrace ack alert-item:lamp"):
        assert part in everything, part
    assert ("物流太慢" in everything) == (evidence is not None)
    assert ("brand:Lux 50%" in everything) == (evidence is not None)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_metric_has_words_of_its_own(language: Literal["en", "zh"]) -> None:
    silent = notice(made(metric="dropout", total=2, score=31.0, negative_share=0.0))
    words = "\n".join([title(silent, language), *lines(silent, language)])
    assert "%" not in words, "nobody was negative: nothing came"
    assert "31" in words
    volume = notice(made(metric="negative_volume", expected_negative=4.5, set_apart=37))
    words = "\n".join(lines(volume, language))
    assert "4.5" in words
    assert "37" in words


def test_a_title_is_one_line_whatever_the_subject() -> None:
    line = title(notice(made("item:a\r\nBcc: x@y\x1b[2J" + "长" * 500)), "zh")
    assert len(line) <= MAX_TITLE_CHARS
    assert line.isprintable()


@pytest.mark.parametrize(
    ("form", "status", "answer", "outcome"),
    [
        ("json", 200, b"", "delivered"),
        ("json", 204, b"", "delivered"),
        ("json", 301, b"", "refused"),
        ("json", 400, b"", "refused"),
        ("json", 404, b"", "refused"),
        ("json", 408, b"", "retry"),
        ("json", 429, b"", "retry"),
        ("json", 500, b"", "retry"),
        ("json", 503, b"", "retry"),
        ("slack", 200, b"ok", "delivered"),
        ("slack", 403, b"invalid_token", "refused"),
        ("feishu", 200, b'{"code":0,"msg":"success"}', "delivered"),
        ("feishu", 200, b'{"StatusCode":0,"StatusMessage":"success"}', "delivered"),
        ("feishu", 200, b'{"code":19021,"msg":"sign match fail"}', "refused"),
        ("feishu", 200, b'{"code":11232,"msg":"frequency limited"}', "retry"),
        ("feishu", 200, b"<html>", "retry"),
        ("feishu", 200, b"[]", "retry"),
        ("dingtalk", 200, b'{"errcode":0,"errmsg":"ok"}', "delivered"),
        ("dingtalk", 200, b'{"errcode":310000,"errmsg":"sign not match"}', "refused"),
        ("dingtalk", 200, b'{"errcode":130101,"errmsg":"send too fast"}', "retry"),
        ("dingtalk", 200, b"\xff", "retry"),
    ],
)
def test_what_answers_mean(form: Format, status: int, answer: bytes, outcome: str) -> None:
    assert verdict(form, status, answer, None).outcome == outcome


def test_retry_after_is_heeded_in_seconds_only() -> None:
    assert verdict("json", 429, b"", "7").retry_after_s == 7.0
    assert verdict("json", 429, b"", "Fri, 31 Dec 2027 23:59:59 GMT").retry_after_s is None
    assert verdict("json", 503, b"", "-3").retry_after_s is None


def test_mail_has_its_thread_its_date_and_no_header_of_a_reviews_making() -> None:
    evil = made("item:x\r\nBcc: all@example.org", evidence=EVIDENCE, alert_id="a1b2")
    message = mail(notice(evil), "zh", "millrace@example.org", ("ops@example.org", "cs@example.org"), NOW_MS)
    again = mail(notice(evil), "zh", "millrace@example.org", ("ops@example.org",), NOW_MS + 5000)
    assert message["Bcc"] is None
    assert message["To"] == "ops@example.org, cs@example.org"
    assert message["Message-ID"] == again["Message-ID"]
    assert message["References"] == "<a1b2@millrace>"
    assert parsedate_to_datetime(message["Date"]).timestamp() == NOW_MS // 1000
    text = message.get_content()
    assert "物流太慢，打[phone]没人接" in text
    assert message["Subject"] in text
