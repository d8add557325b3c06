"""A notice as an HTTP request, in the format and with the signature of its receiver, and what the answer means. Pure.

json      ``{"type": "alert.opened", "timestamp": …, "data": {"incident_id", "together", "alert"}}``, signed as
          Standard Webhooks 1.0.0 says: headers webhook-id, webhook-timestamp, webhook-signature
slack     incoming webhook: text and blocks; no signature, the address is the secret
feishu    custom bot: card; ``sign`` = base64 of HMAC-SHA256 over nothing, keyed by timestamp (s), newline, secret
dingtalk  custom robot: text; ``sign`` = base64 of HMAC-SHA256 over timestamp (ms), newline, secret, keyed by the
          secret; both in the query

Text from events goes into plain-text fields only, so a review can neither format itself nor call everybody (@all).
Feishu and DingTalk answer 200 whatever happens: the code is in the body.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import hmac
import urllib.parse
from typing import Any, Final, Literal

import msgspec

from worker.notify.notice import Language, Notice, lines, title

Format = Literal["json", "slack", "feishu", "dingtalk"]
MAX_SECTION_CHARS: Final = 2900
"""Slack takes 3000 characters a block; the others take more."""
MAX_ANSWER_BYTES: Final = 4096

_RETRY_STATUS: Final = frozenset({408, 425, 429})
# Nothing that asking again would mend: address, signature, keyword or address list of the bot.
_REFUSED: Final[dict[Format, frozenset[int]]] = {
    "feishu": frozenset({9499, 19001, 19002, 19021, 19022, 19024}),
    "dingtalk": frozenset({300001, 310000, 400013, 400101, 400102, 400105, 400106}),
    "json": frozenset(),
    "slack": frozenset(),
}
_CODE_FIELDS: Final[dict[Format, tuple[str, ...]]] = {
    "feishu": ("code", "StatusCode"),
    "dingtalk": ("errcode",),
    "json": (),
    "slack": (),
}
_COLOURS: Final = {"opened": "red", "worsening": "red", "improving": "orange", "resolved": "green"}


class Request(msgspec.Struct, frozen=True):
    """One POST."""

    url: str
    body: bytes
    headers: dict[str, str]


class Verdict(msgspec.Struct, frozen=True):
    """What became of one attempt. ``detail`` says why not, and holds no address or secret."""

    outcome: Literal["delivered", "retry", "refused"]
    detail: str = ""
    retry_after_s: float | None = None


def request(notice: Notice, form: Format, language: Language, url: str, secret: str | None, now_ms: int) -> Request:
    """The request for a notice at the wall time ``now_ms``; signed when there is a secret."""
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "millrace"}
    if form == "json":
        body = _json(notice, now_ms)
        headers |= standard_headers(notice.message_id, now_ms // 1000, body, secret)
        return Request(url, body, headers)
    if form == "slack":
        return Request(url, msgspec.json.encode(_slack(notice, language)), headers)
    if form == "feishu":
        signed = {} if secret is None else feishu_signature(now_ms // 1000, secret)
        return Request(url, msgspec.json.encode({**signed, **_feishu(notice, language)}), headers)
    body = msgspec.json.encode(
        {"msgtype": "text", "text": {"content": "\n".join([title(notice, language), *lines(notice, language)])}}
    )
    return Request(url if secret is None else dingtalk_url(url, now_ms, secret), body, headers)


def answered_in_body(form: Format) -> bool:
    """Whether an answer means something only with its body."""
    return bool(_CODE_FIELDS[form])


def verdict(form: Format, status: int, body: bytes, retry_after: str | None) -> Verdict:
    """What an answer means. ``retry_after`` is the header; only its form in seconds is understood."""
    wait_s = float(retry_after) if retry_after is not None and retry_after.strip().isdecimal() else None
    if status in _RETRY_STATUS or status >= 500:
        return Verdict("retry", f"HTTP {status}", wait_s)
    if not 200 <= status < 300:
        return Verdict("refused", f"HTTP {status}")
    if not answered_in_body(form):
        return Verdict("delivered")
    code = _code(form, body)
    if code == 0:
        return Verdict("delivered")
    if code is None:
        return Verdict("retry", f"{form} answered without a code")
    return Verdict("refused" if code in _REFUSED[form] else "retry", f"{form} code {code}", wait_s)


def standard_headers(message_id: str, timestamp_s: int, body: bytes, secret: str | None) -> dict[str, str]:
    """Headers of Standard Webhooks 1.0.0: the signature is base64 of HMAC-SHA256 over ``id.timestamp.body``.

    A secret that begins with ``whsec_`` is base64; any other is used as it is.
    """
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp_s)}
    if secret is not None:
        signed = b".".join((message_id.encode(), str(timestamp_s).encode(), body))
        headers["webhook-signature"] = f"v1,{_hmac(webhook_key(secret), signed)}"
    return headers


def webhook_key(secret: str) -> bytes:
    """Bytes of a secret. Raises ValueError when it begins with ``whsec_`` and is not base64."""
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise ValueError("a secret that begins with whsec_ goes on in base64") from error


def feishu_signature(timestamp_s: int, secret: str) -> dict[str, str]:
    """Fields that sign a message to a Feishu custom bot."""
    return {"timestamp": str(timestamp_s), "sign": _hmac(f"{timestamp_s}\n{secret}".encode(), b"")}


def dingtalk_url(url: str, timestamp_ms: int, secret: str) -> str:
    """Address that signs a message to a DingTalk custom robot."""
    sign = _hmac(secret.encode(), f"{timestamp_ms}\n{secret}".encode())
    query = urllib.parse.urlencode({"timestamp": timestamp_ms, "sign": sign})
    return f"{url}{'&' if '?' in url else '?'}{query}"


def _hmac(key: bytes, message: bytes) -> str:
    return base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode()


def _json(notice: Notice, now_ms: int) -> bytes:
    told = datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC).isoformat(timespec="milliseconds")
    data = {"incident_id": notice.incident_id, "together": notice.together, "alert": notice.alert}
    return msgspec.json.encode({"type": f"alert.{notice.alert.status}", "timestamp": told, "data": data})


def _slack(notice: Notice, language: Language) -> dict[str, Any]:
    head, body = title(notice, language), "\n".join(lines(notice, language))[:MAX_SECTION_CHARS]
    # The text of the notification is markup, and its only three signs that do anything are escaped.
    escaped = head.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {
        "text": escaped,
        "blocks": [
            {"type": "header", "text": {"type": "plain_text", "text": head[:150], "emoji": False}},
            {"type": "section", "text": {"type": "plain_text", "text": body, "emoji": False}},
        ],
    }


def _feishu(notice: Notice, language: Language) -> dict[str, Any]:
    colour = _COLOURS[notice.alert.status]
    return {
        "msg_type": "interactive",
        "card": {
            "header": {"template": colour, "title": {"tag": "plain_text", "content": title(notice, language)}},
            "elements": [
                {"tag": "div", "text": {"tag": "plain_text", "content": line}} for line in lines(notice, language)
            ],
        },
    }


def _code(form: Format, body: bytes) -> int | None:
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if isinstance(answer, dict):
        for field in _CODE_FIELDS[form]:
            if isinstance(answer.get(field), int):
                return int(answer[field])
    return None
