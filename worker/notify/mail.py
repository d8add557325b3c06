"""A notice as a message of mail. Pure. All messages of one alert stand in one thread."""

from __future__ import annotations

import datetime
from email.errors import InvalidHeaderDefect
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from worker.notify.notice import Language, Notice, lines, title


def mail(notice: Notice, language: Language, sender: str, to: tuple[str, ...], now_ms: int) -> EmailMessage:
    """The message at the wall time ``now_ms``. Its Message-ID is the same for every attempt.

    Raises ValueError where a header cannot hold what it is given, and whatever else the package email slips on.
    """
    message = EmailMessage(policy=SMTP)
    message["Subject"] = title(notice, language)
    message["From"] = sender
    message["To"] = ", ".join(to)
    message["Date"] = format_datetime(datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC))
    message["Message-ID"] = f"<{notice.message_id}@millrace>"
    message["References"] = f"<{notice.alert.alert_id}@millrace>"
    # Nobody's absence note is wanted.
    message["Auto-Submitted"] = "auto-generated"
    message["X-Millrace-Alert"] = notice.alert.alert_id
    message.set_content("\n".join([title(notice, language), "", *lines(notice, language), ""]))
    return message


def is_address(text: str) -> bool:
    """Whether this is one address of mail with a local part and a domain, a name before it or not."""
    try:
        header = SMTP.header_factory("To", text)
    except Exception:  # noqa: BLE001 the parser raises IndexError for "name@", and more
        return False
    invalid = any(isinstance(defect, InvalidHeaderDefect) for defect in header.defects)
    return not invalid and text.isprintable() and [bool(a.username and a.domain) for a in header.addresses] == [True]
