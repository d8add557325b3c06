"""One attempt to deliver, over HTTP or SMTP. Whatever goes wrong becomes a `Verdict`; nothing is raised for it.

An attempt never takes longer than ``request_timeout_ms``, from looking up the name to the last byte of the answer.
Redirects are not followed: whoever holds an address could send what is told somewhere else. Details say what failed,
never where to: the address of a bot is a secret.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

import aiohttp
import aiosmtplib
import structlog

from worker.config import MailConfig, NotifyConfig, SinkConfig, WebhookConfig
from worker.errors import ConfigError
from worker.notify.mail import is_address, mail
from worker.notify.notice import Notice
from worker.notify.webhook import MAX_ANSWER_BYTES, Verdict, answered_in_body, request, verdict, webhook_key
from worker.secret import read_secret

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_log = structlog.get_logger(__name__)


class Sender(Protocol):
    """Delivers notices to one sink."""

    async def send(self, notice: Notice) -> Verdict:
        """One attempt."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def sender(name: str, config: NotifyConfig, env: Mapping[str, str]) -> Sender:
    """The sender of a sink. Raises `ConfigError` when a secret or certificate is missing or wrong."""
    sink, timeout_s = config.sinks[name], config.request_timeout_ms / 1000
    where = f"notify.sinks.{name}"
    if isinstance(sink, MailConfig):
        return MailSender(where, sink, timeout_s, env)
    return WebhookSender(where, sink, timeout_s, env)


class WebhookSender:
    """Posts."""

    def __init__(self, where: str, sink: WebhookConfig, timeout_s: float, env: Mapping[str, str]) -> None:
        self._sink, self._timeout_s = sink, timeout_s
        self._url = _resolved(sink.url, env, f"{where}.url")
        parts = _http(self._url)
        if parts is None:
            raise ConfigError(f"{where}.url: expected https://host/path")
        self._proxy = None if sink.proxy is None else _resolved(sink.proxy, env, f"{where}.proxy")
        if self._proxy is not None and _http(self._proxy) is None:
            raise ConfigError(f"{where}.proxy: expected http://host:port, or https")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            _log.warning("a sink without TLS: whoever is on the way can read alerts", sink=where)
        self._secret = _optional(sink.secret, env, f"{where}.secret")
        if self._secret is not None and sink.format == "json":
            try:
                webhook_key(self._secret)
            except ValueError as error:
                raise ConfigError(f"{where}.secret: {error}") from error
        self._token = _optional(sink.token, env, f"{where}.token")
        if self._token is not None and "@" in parts.netloc:
            raise ConfigError(f"{where}.token: the url names a user already, and both are one header; leave one out")
        self._ssl = _context(sink, where)
        self._session: aiohttp.ClientSession | None = None

    async def send(self, notice: Notice) -> Verdict:
        sink, now_ms = self._sink, time.time_ns() // 1_000_000
        asked = request(notice, sink.format, sink.language, self._url, self._secret, now_ms)
        headers = asked.headers if self._token is None else {**asked.headers, "Authorization": f"Bearer {self._token}"}
        if self._session is None:
            # Connections are made when there is something to tell, which is seldom; none is kept.
            timeout = aiohttp.ClientTimeout(total=self._timeout_s)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True, ssl=self._ssl), timeout=timeout
            )
        try:
            async with self._session.post(
                asked.url, data=asked.body, headers=headers, allow_redirects=False, proxy=self._proxy
            ) as answer:
                body = await _beginning(answer.content) if answered_in_body(sink.format) else b""
                return verdict(sink.format, answer.status, body, answer.headers.get("Retry-After"))
        except TimeoutError:
            return Verdict("retry", f"no answer within {self._timeout_s:g} s")
        except aiohttp.InvalidURL:
            return Verdict("refused", "the address is no URL")
        except (aiohttp.ClientError, OSError) as error:  # before ValueError: a bad certificate is both
            return Verdict("retry", _reason(error))
        except ValueError as error:
            return Verdict("refused", f"the request cannot be made: {type(error).__name__}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class MailSender:
    """Sends by SMTP, one connection a message."""

    def __init__(self, where: str, sink: MailConfig, timeout_s: float, env: Mapping[str, str]) -> None:
        self._sink, self._timeout_s = sink, timeout_s
        for address in (sink.sender, *sink.to):
            if not is_address(address):
                raise ConfigError(f"{where}: {address!r} is no address of mail")
        if sink.security == "plain" and sink.host not in _LOOPBACK:
            _log.warning("a sink without TLS: whoever is on the way can read alerts", sink=where)
        self._username = _optional(sink.username, env, f"{where}.username")
        self._password = _optional(sink.password, env, f"{where}.password")
        self._ssl = _context(sink, where)

    async def send(self, notice: Notice) -> Verdict:
        sink = self._sink
        try:
            message = mail(notice, sink.language, sink.sender, sink.to, time.time_ns() // 1_000_000)
        except Exception as error:  # noqa: BLE001 the package email slips in ways of its own; the role must not end
            return Verdict("refused", f"the message cannot be written: {type(error).__name__}")
        try:
            async with asyncio.timeout(self._timeout_s):
                refused, _ = await aiosmtplib.send(
                    message,
                    hostname=sink.host,
                    port=sink.port,
                    username=self._username,
                    password=self._password,
                    use_tls=sink.security == "tls",
                    start_tls=sink.security == "starttls",
                    tls_context=self._ssl if sink.security != "plain" else None,
                    timeout=self._timeout_s,
                )
        except (TimeoutError, aiosmtplib.SMTPTimeoutError):
            return Verdict("retry", f"no answer within {self._timeout_s:g} s")
        except aiosmtplib.SMTPRecipientsRefused as error:
            # A code from 500 on is for good (RFC 5321, 4.2.1).
            lasting = all(each.code >= 500 for each in error.recipients)
            return Verdict("refused" if lasting else "retry", "no recipient was accepted")
        except aiosmtplib.SMTPResponseException as error:
            return Verdict("refused" if error.code >= 500 else "retry", f"SMTP {error.code}")
        except (aiosmtplib.SMTPException, OSError) as error:
            return Verdict("retry", _reason(error))
        if refused:
            _log.warning("mail was not accepted for some recipients", refused=len(refused), of=len(sink.to))
        return Verdict("delivered")

    async def close(self) -> None:
        """Nothing is kept between messages."""


def _resolved(text: str, env: Mapping[str, str], where: str) -> str:
    return read_secret(text, env, where) if text.startswith(("env:", "file:")) else text


def _http(text: str) -> SplitResult | None:
    """The parts of an address that HTTP can ask; None for what is none."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 raises where it is no port
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and parts.hostname else None


def _optional(reference: str | None, env: Mapping[str, str], where: str) -> str | None:
    return None if reference is None else read_secret(reference, env, where)


def _context(sink: SinkConfig, where: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=sink.ca_file)
    except OSError as error:  # an SSLError is one
        raise ConfigError(f"{where}.ca_file {sink.ca_file}: {error.strerror or error}") from error


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    """The whole answer, or its beginning where it is long."""
    body = b""
    while len(body) < MAX_ANSWER_BYTES and (more := await content.read(MAX_ANSWER_BYTES - len(body))):
        body += more
    return body


def _reason(error: BaseException) -> str:
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    # The innermost knows best; those around it are the libraries' own.
    for each in reversed(chain):
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"TLS: {getattr(each, 'verify_message', None) or 'the certificate is not accepted'}"
        if isinstance(each, ssl.SSLError):
            return f"TLS: {getattr(each, 'reason', None) or 'failed'}"
        if isinstance(each, ConnectionRefusedError):
            return "connection refused"
    return f"connection failed: {type(error).__name__}"
