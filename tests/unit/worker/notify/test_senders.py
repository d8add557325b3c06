"""One attempt against a real server on loopback: taken, refused, slow, dripping, broken, wrong certificate."""

from __future__ import annotations

import asyncio
import email
import email.policy
import selectors
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from aiohttp import web
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from tests.alerts_made import EVIDENCE, made, notice
from worker.config import MailConfig, NotifyConfig, WebhookConfig
from worker.demo.embedded import free_ports
from worker.errors import ConfigError
from worker.notify.senders import sender
from worker.notify.webhook import Verdict

TIMEOUT_MS = 20_000
SHORT_MS = 500
NOTICE = notice(made(evidence=EVIDENCE))
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def run(attempt: Coroutine[Any, Any, Verdict]) -> Verdict:
    """The verdict, once every socket of the attempt is closed: to end TLS takes turns of the loop, and an answer."""
    selector = selectors.DefaultSelector()

    async def go() -> Verdict:
        own = len(selector.get_map())
        verdict = await attempt
        async with asyncio.timeout(TIMEOUT_MS / 1000):
            while len(selector.get_map()) > own:
                await asyncio.sleep(0)
        await asyncio.sleep(0)  # a transport closes its socket in the turn after it was taken from the selector
        return verdict

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        return runner.run(go())


def send(sink: WebhookConfig | MailConfig, env: dict[str, str] | None = None, timeout_ms: int = TIMEOUT_MS) -> Verdict:
    """The verdict of one attempt."""

    async def go() -> Verdict:
        one = sender("ops", NotifyConfig(sinks={"ops": sink}, request_timeout_ms=timeout_ms), env or {})
        try:
            return await one.send(NOTICE)
        finally:
            await one.close()

    return run(go())


def exchange(
    handler: Handler, *, tls: ssl.SSLContext | None = None, timeout_ms: int = TIMEOUT_MS, **fields: Any
) -> Verdict:
    """One attempt against a server that answers with ``handler``."""

    async def go() -> Verdict:
        async with serving(handler, tls) as url:
            sink = WebhookConfig(url="env:URL", **fields)
            one = sender(
                "ops",
                NotifyConfig(sinks={"ops": sink}, request_timeout_ms=timeout_ms),
                {"URL": url, "S": "密", "T": "T"},
            )
            try:
                return await one.send(NOTICE)
            finally:
                await one.close()

    return run(go())


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/hook", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        port = runner.addresses[0][1]
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}/hook?token=SECRET"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("form", "answer"),
    [("json", {}), ("slack", {}), ("feishu", {"code": 0}), ("dingtalk", {"errcode": 0})],
)
def test_every_format_arrives_as_json_with_its_signature(form: Any, answer: dict[str, int]) -> None:
    seen: list[tuple[web.Request, bytes]] = []

    async def take(asked: web.Request) -> web.Response:
        seen.append((asked, await asked.read()))
        return web.json_response(answer)

    secret = {} if form == "slack" else {"secret": "env:S"}
    assert exchange(take, format=form, **secret) == Verdict("delivered")
    ((asked, body),) = seen
    assert asked.content_type == "application/json"
    sent = msgspec.json.decode(body)
    signed = {
        "json": asked.headers.get("webhook-signature"),
        "feishu": sent.get("sign"),
        "dingtalk": asked.query.get("sign"),
        "slack": "none",
    }
    assert signed[form]
    assert "token=SECRET" in asked.query_string


def test_a_token_goes_into_the_authorization_header() -> None:
    async def check(asked: web.Request) -> web.Response:
        return web.Response(status=200 if asked.headers.get("Authorization") == "Bearer T" else 401)

    assert exchange(check, token="env:T").outcome == "delivered"
    assert exchange(check).outcome == "refused"


def test_a_proxy_is_named_as_an_address_is() -> None:
    asked_for = []

    async def forward(asked: web.BaseRequest) -> web.Response:
        asked_for.append((str(asked.url), asked.headers.get("Proxy-Authorization")))
        return web.Response()

    async def go() -> Verdict:
        runner = web.ServerRunner(web.Server(forward), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        env = {"PROXY": f"http://li:pw@127.0.0.1:{runner.addresses[0][1]}"}
        config = NotifyConfig(sinks={"ops": WebhookConfig(url="http://ops.invalid/hook", proxy="env:PROXY")})
        one = sender("ops", config, env)
        try:
            return await one.send(NOTICE)
        finally:
            await one.close()
            await runner.cleanup()

    assert run(go()) == Verdict("delivered")
    assert asked_for == [("http://ops.invalid/hook", "Basic bGk6cHc=")]


@pytest.mark.parametrize(("status", "outcome"), [(500, "retry"), (503, "retry"), (429, "retry"), (404, "refused")])
def test_errors_are_told_apart_by_whether_trying_again_helps(status: int, outcome: str) -> None:
    async def fail(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Retry-After": "9"})

    found = exchange(fail)
    assert (found.outcome, found.detail) == (outcome, f"HTTP {status}")
    assert found.retry_after_s == (9.0 if outcome == "retry" else None)


def test_a_redirect_is_not_followed() -> None:
    visited = []

    async def send_away(asked: web.Request) -> web.Response:
        visited.append(asked.path)
        return web.Response(status=302, headers={"Location": "/hook"})

    assert exchange(send_away) == Verdict("refused", "HTTP 302")
    assert visited == ["/hook"]


def test_silence_and_dripping_end_with_the_time_out() -> None:
    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def drip(asked: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(asked)
        for _ in range(600):
            await answer.write(b".")
            await asyncio.sleep(0.1)
        return answer

    for handler in (silent, drip):
        assert exchange(handler, timeout_ms=SHORT_MS, format="feishu") == Verdict("retry", "no answer within 0.5 s")


def test_an_endless_answer_is_read_to_the_bound_only() -> None:
    async def flood(asked: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(asked)
        try:
            while True:
                await answer.write(b"x" * 65536)
        except ConnectionError:
            return answer

    assert exchange(flood) == Verdict("delivered")
    assert exchange(flood, format="dingtalk") == Verdict("retry", "dingtalk answered without a code")


def test_a_connection_that_breaks_is_tried_again() -> None:
    async def hang_up(asked: web.Request) -> web.Response:
        assert asked.transport is not None
        asked.transport.close()
        return web.Response()

    assert exchange(hang_up) == Verdict("retry", "connection failed: ServerDisconnectedError")


def test_nobody_listening_is_tried_again_and_the_address_is_not_told() -> None:
    found = send(WebhookConfig(url="http://127.0.0.1:9/SECRET"))
    assert found == Verdict("retry", "connection refused")
    found = send(WebhookConfig(url="https://no-such-host.invalid/SECRET"))
    assert found.outcome == "retry"
    assert "SECRET" not in found.detail


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def server_context(authority: trustme.CA, host: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(host).configure_cert(context)
    return context


async def ok(_: web.Request) -> web.Response:
    return web.Response()


def test_tls_is_verified_against_our_own_authority_where_one_is_given(authority: trustme.CA, ca_file: str) -> None:
    assert exchange(ok, tls=server_context(authority), ca_file=ca_file) == Verdict("delivered")
    unknown = exchange(ok, tls=server_context(authority))
    assert unknown.outcome == "retry"
    assert unknown.detail.startswith("TLS: ")
    other_host = exchange(ok, tls=server_context(authority, "example.org"), ca_file=ca_file)
    assert (other_host.outcome, "127.0.0.1" in other_host.detail) == ("retry", True)


def test_plain_http_where_tls_is_expected_is_a_tls_failure() -> None:
    async def go() -> Verdict:
        async with serving(ok, None) as url:
            config = NotifyConfig(sinks={"ops": WebhookConfig(url=url.replace("http:", "https:"))})
            one = sender("ops", config, {})
            try:
                return await one.send(NOTICE)
            finally:
                await one.close()

    found = run(go())
    assert (found.outcome, found.detail[:4]) == ("retry", "TLS:")


# --- mail -----------------------------------------------------------------------------------------------------------


class Postbox:
    """An SMTP handler that keeps what comes, or says what it is told to say."""

    def __init__(self, rcpt: str = "250 OK", data: str = "250 OK", delay_s: float = 0.0) -> None:
        self._rcpt, self._data, self._delay_s = rcpt, data, delay_s
        self.kept: list[Any] = []

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if self._rcpt.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self._rcpt

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        await asyncio.sleep(self._delay_s)
        self.kept.append(envelope)
        return self._data


@contextmanager
def postbox(box: Postbox, **options: Any) -> Iterator[int]:
    controller = Controller(box, hostname="127.0.0.1", port=free_ports(1)[0], **options)
    controller.start()
    try:
        yield controller.port
    finally:
        controller.stop()


def mail_to(port: int, **fields: Any) -> MailConfig:
    return MailConfig(
        **{"host": "127.0.0.1", "port": port, "sender": "millrace@example.org", "to": ("ops@example.org",)}
        | {"security": "plain"}
        | fields
    )


def test_mail_arrives_with_chinese_text_whole() -> None:
    box = Postbox()
    with postbox(box) as port:
        assert send(mail_to(port, language="zh")) == Verdict("delivered")
    (envelope,) = box.kept
    assert envelope.rcpt_tos == ["ops@example.org"]
    message = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert "item:lamp" in message["Subject"]
    assert "物流太慢" in message.get_content()


def test_mail_is_tried_again_or_not_as_the_code_says() -> None:
    for rcpt, data, outcome in (
        ("450 busy", "250 OK", "retry"),
        ("550 no such user", "250 OK", "refused"),
        ("250 OK", "451 later", "retry"),
        ("250 OK", "554 spam", "refused"),
    ):
        with postbox(Postbox(rcpt, data)) as port:
            assert send(mail_to(port)).outcome == outcome, (rcpt, data)


def test_mail_has_the_same_time_out() -> None:
    with postbox(Postbox(delay_s=3.0)) as port:
        assert send(mail_to(port), timeout_ms=SHORT_MS) == Verdict("retry", "no answer within 0.5 s")
    assert send(mail_to(9)) == Verdict("retry", "connection refused")


def test_mail_over_starttls_with_login(authority: trustme.CA, ca_file: str) -> None:
    box = Postbox()

    def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        good = isinstance(data, LoginPassword) and (data.login, data.password) == (b"u", b"p")
        return AuthResult(success=good, handled=good)

    options = {"tls_context": server_context(authority), "authenticator": check, "auth_required": True}
    fields = {"security": "starttls", "username": "env:U", "password": "env:P"}
    with postbox(box, **options) as port:
        assert send(mail_to(port, ca_file=ca_file, **fields), {"U": "u", "P": "p"}) == Verdict("delivered")
        wrong = send(mail_to(port, ca_file=ca_file, **fields), {"U": "u", "P": "no"})
        assert wrong == Verdict("refused", "SMTP 535")
        assert send(mail_to(port, **fields), {"U": "u", "P": "p"}).detail.startswith("TLS: ")
    assert len(box.kept) == 1


def test_mail_over_tls_from_the_first_byte(authority: trustme.CA, ca_file: str) -> None:
    box = Postbox()
    with postbox(box, ssl_context=server_context(authority)) as port:
        assert send(mail_to(port, security="tls", ca_file=ca_file)) == Verdict("delivered")
        assert send(mail_to(port, security="tls")).detail.startswith("TLS: ")
    assert len(box.kept) == 1


@pytest.mark.parametrize("error", [IndexError, UnicodeEncodeError("ascii", "x", 0, 1, "no"), AttributeError])
def test_mail_that_cannot_be_made_is_refused(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def slip(*_: Any) -> None:
        raise error

    monkeypatch.setattr("worker.notify.senders.mail", slip)
    assert send(mail_to(9)).outcome == "refused"


def test_a_server_without_starttls_gets_neither_password_nor_text() -> None:
    box = Postbox()
    with postbox(box) as port:
        found = send(mail_to(port, security="starttls"))
    assert found.outcome != "delivered"
    assert box.kept == []


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sink", "says"),
    [
        (WebhookConfig(url="env:NOTHING"), r"notify\.sinks\.ops\.url: .*NOTHING"),
        (WebhookConfig(url="file:/nowhere/at/all"), "/nowhere/at/all"),
        (WebhookConfig(url="ftp://x/y"), "https://host/path"),
        (WebhookConfig(url="https://x/y", secret="env:BAD"), "base64"),
        (WebhookConfig(url="https://x/y", ca_file="/nowhere.pem"), "nowhere.pem"),
        (WebhookConfig(url="https://[bad/x"), r"sinks\.ops\.url: expected https://host/path"),
        (WebhookConfig(url="https://x:99999/y"), r"sinks\.ops\.url: expected"),
        (WebhookConfig(url="https://user:pw@x/y", token="env:TOKEN"), r"sinks\.ops\.token: "),
        (WebhookConfig(url="https://x/y", proxy="proxy.corp:3128"), r"sinks\.ops\.proxy: expected http://host:port"),
        (WebhookConfig(url="https://x/y", proxy="socks5://proxy.corp:1080"), r"sinks\.ops\.proxy: expected"),
        (WebhookConfig(url="https://x/y", proxy="env:NOTHING"), r"sinks\.ops\.proxy: .*NOTHING"),
        (MailConfig(host="h", sender="millrace@", to=("a@b",)), "millrace@"),
        (MailConfig(host="h", sender="a@b", to=("@b",)), "@b"),
        (MailConfig(host="h", sender="a@b", to=("a@b, c@d",)), "no address"),
        (MailConfig(host="h", sender="a@b", to=("a@b;c@d",)), "no address"),
        (MailConfig(host="h", sender="nobody", to=("a@b",)), "nobody"),
        (MailConfig(host="h", sender="a@b", to=("a@b\nBcc: c@d",)), "no address"),
    ],
)
def test_what_cannot_work_is_said_at_the_start(sink: WebhookConfig | MailConfig, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        sender("ops", NotifyConfig(sinks={"ops": sink}), {"BAD": "whsec_***", "TOKEN": "T"})


def test_a_secret_address_is_not_repeated_when_it_is_wrong() -> None:
    for fields in ({"url": "env:URL"}, {"url": "https://x/y", "proxy": "env:URL"}):
        with pytest.raises(ConfigError) as caught:
            sender("ops", NotifyConfig(sinks={"ops": WebhookConfig(**fields)}), {"URL": "https://[SECRET/x"})
        assert "SECRET" not in str(caught.value)
        assert caught.value.__context__ is None


@pytest.mark.parametrize("address", ["Li Lei <li@example.org>", '"li lei"@example.org', "李@例.cn", "root@[10.0.0.1]"])
def test_addresses_of_every_form_are_taken(address: str) -> None:
    sender("ops", NotifyConfig(sinks={"ops": MailConfig(host="h", sender=address, to=(address,))}), {})


def test_secrets_come_from_files_too(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("https://x/SECRET\n")
    (tmp_path / "empty").write_text("\n")
    sender("ops", NotifyConfig(sinks={"ops": WebhookConfig(url=f"file:{tmp_path}/url")}), {})
    with pytest.raises(ConfigError, match="empty"):
        sender("ops", NotifyConfig(sinks={"ops": WebhookConfig(url=f"file:{tmp_path}/empty")}), {})
