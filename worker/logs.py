"""Structured logs on standard error, one line an event. No message text is ever logged; users are pseudonyms."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from functools import lru_cache
from typing import Any

import structlog

from worker.config import ObserveConfig
from worker.environment import value_of

KEY_VARIABLE = "MILLRACE_PSEUDONYM_KEY"


def configure(observe: ObserveConfig) -> None:
    """Send our logs and those of libraries to standard error, as JSON lines or for reading, from ``log_level`` up.

    Raises `ConfigError` when the file of the pseudonyms' key cannot be read.
    """
    _key()  # a file that cannot be read ends the role at its start, not at its first event
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if observe.log_format == "json":
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(observe.log_level.upper())


def pseudonym(user_id: str | None) -> str:
    """Stand-in for a user id in logs and on screens: a keyed hash, not to be guessed back from a list of ids.

    The key is random for every process; set MILLRACE_PSEUDONYM_KEY, or name its file in MILLRACE_PSEUDONYM_KEY_FILE, to
    follow one user through several processes.
    """
    if user_id is None:
        return "-"
    return "u-" + hashlib.blake2b(user_id.encode(errors="surrogatepass"), key=_key(), digest_size=6).hexdigest()


@lru_cache(maxsize=1)
def _key() -> bytes:
    given = value_of(os.environ, KEY_VARIABLE)
    return hashlib.blake2b(given.encode(), digest_size=32).digest() if given else os.urandom(32)
