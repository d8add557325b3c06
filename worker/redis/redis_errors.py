"""What of Redis's errors waiting does not mend: a password, a right or a certificate that is wrong."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import redis


def refusal(error: BaseException) -> str | None:
    """What Redis (or we, its certificate) refused and what to do about it; None for errors that may pass."""
    for each in _chain(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted: {each.verify_message}. Name the CA in redis.url"
                " (rediss://host:port/0?ssl_ca_certs=/path/ca.pem), and the host as the certificate does"
            )
        if isinstance(each, redis.exceptions.AuthenticationError):
            return f"it refuses our user or password: {each}. Check those of redis.url (MILLRACE_REDIS__URL_FILE)"
        if isinstance(each, redis.exceptions.NoPermissionError):
            return f"its user lacks a right: {each}. See deploy/redis/users.acl for what each role needs"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it, at most ten deep."""
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
