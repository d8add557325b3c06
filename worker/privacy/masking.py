"""Masks what tells who somebody is, in Chinese and English text, wherever text is kept outside the source topics.

Pure. What is found is replaced by a word in brackets, so that a reader still sees what stood there:

[email]    addresses of mail
[phone]    Chinese mobiles and landlines, numbers with a country code, North American numbers; also in full-width digits
[id]       Chinese identity numbers, 18 characters with the check digit of GB 11643 or the 15 digits of before 1999
[card]     bank cards: 13 to 19 digits, in groups or not, that pass Luhn's test (ISO/IEC 7812-1); IBANs (ISO 13616)
[account]  what stands behind a word such as 微信, QQ, 订单号, account number
[number]   any other seven digits or more, together or joined by single signs (138.1234.5678, 123-45-6789), and seven
           numerals written out (幺三八…, 壹叁捌…); not dates, prices, decimals and what a unit stands behind
[address]  street and house number, building and room, British postcodes, American state and ZIP
[user]     a name behind an @

Where a check digit does not fit, the digits are masked all the same, as a number: better one order number too many than
one person too few. Names of persons are not found; who must not keep any text keeps none (``worker.excerpt_chars: 0``).
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

from model.text import normalise

CUT_MARGIN_CHARS: Final = 96
"""What is dropped at the end of a text that was cut before it was masked: half a number would not be known as one."""
NUMBER_DIGITS_MIN: Final = 7
"""Fewer digits than this in a text are prices, sizes and days."""
_READ_FACTOR: Final = 4

# Nothing below matches without one of these, so most reviews end after a few microseconds.
_SUSPECT: Final = re.compile(
    r"[\d@＠①-⓿⁰-₉幺]|[零〇一二两三四五六七八九壹贰貳叁參肆伍陆陸柒捌玖]{7}|微信|威信|薇信|支付宝|扣扣"
)
_WORDS: Final = ("wechat", "weixin", "vx", "wx", "qq", "telegram", "whatsapp", "(at)", "[at]", "v信")
_AT: Final = ("@", "(at)", "[at]")
# One of these stands in every match of `_ACCOUNT`.
_ACCOUNT_WORDS: Final = (
    *(
        "微信",
        "威信",
        "薇信",
        "支付宝",
        "扣扣",
        "号",
        "户",
        "wechat",
        "weixin",
        "vx",
        "wx",
        "v信",
        "qq",
        "telegram",
        "whatsapp",
    ),
    *("account", "acct", "order", "tracking", "customer", "member"),
)
# Scripts written without spaces between words: where letters of others meet them, the name begins or ends there.
_UNSPACED: Final = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_LABEL: Final = rf"(?:(?:[^\W_{_UNSPACED}]|-){{1,63}}|[{_UNSPACED}]{{1,20}})"
_EMAIL: Final = re.compile(
    rf"(?:(?:[^\W{_UNSPACED}]|[.%+'-]){{1,64}}|[{_UNSPACED}]{{1,8}})\s?(?:@|\(at\)|\[at\])\s?"
    rf"(?:{_LABEL}\.){{1,6}}(?:(?:[^\W_{_UNSPACED}]|-){{1,63}}|中[国國]|公司|网[络址]|香港|台[湾灣])",
    re.IGNORECASE,
)
_USER: Final = re.compile(r"(?<![\w@])@[\w-]{2,30}")
_ACCOUNT: Final = re.compile(
    r"(?P<word>微信号?|威信|薇信|支付宝(?:账号|帐号)?|扣扣|(?:银行)?[账帐][号户]|卡号|(?:订|快递|运|物流)?单号|会员号"
    r"|\b(?:wechat|weixin|vx|wx|v信|qq|telegram|whatsapp)\b"
    r"|\b(?:account|acct|order|tracking|customer|member)(?:\s?(?:no\.?|number|num|id|#))\b\.?)"
    r"(?P<link>\s?(?:[:#=]|是|为|is)?\s?)"
    r"(?P<name>[a-z0-9](?:[a-z0-9_.-]{3,38}[a-z0-9]))",
    re.IGNORECASE | re.ASCII,
)
_ID: Final = re.compile(r"(?<![0-9a-z])(?:[1-9][0-9]{16}[0-9x]|[1-9][0-9]{14})(?![0-9a-z])", re.IGNORECASE)
_IBAN: Final = re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD: Final = re.compile(r"(?<![0-9+])[0-9](?:[ -]?[0-9]){12,18}(?![0-9])")
_PHONE: Final = re.compile(
    r"(?<![0-9])(?:"
    r"(?:\+|00)[1-9][0-9]{0,2}(?:[ .()-]{0,2}[0-9]){6,12}"  # with country code
    r"|(?:86[ -]?)?1[3-9][0-9](?:[ -]?[0-9]{4}){2}"  # mobile in China
    r"|\(?0[0-9]{2,3}\)?[ —–-]?[1-9][0-9]{2,3}[ -]?[0-9]{4}(?:(?:[ -]|转|ext\.? ?)[0-9]{1,6})?"  # landline in China
    r"|[48]00[ -]?[0-9]{3,4}[ -]?[0-9]{3,4}"  # service numbers
    r"|(?:1[ .-]?)?\(?[2-9][0-9]{2}\)?[ .-]?[2-9][0-9]{2}[ .-][0-9]{4}"  # North America
    r"|0[0-9]{3,4}[ -][0-9]{3}[ -]?[0-9]{3,4}"  # United Kingdom
    r")(?![0-9])"
)
_NUMBER: Final = re.compile(r"[0-9]{7,}|[零〇一二两三四五六七八九幺壹贰貳叁參肆伍陆陸柒捌玖]{7,}")
_SIGN: Final = "._/‐–—−·-"
_END: Final = rf"(?![{_SIGN}]?[0-9])"
_DAY: Final = (
    r"(?:(?:19|20)[0-9]{2}(?:-[01]?[0-9]-|/[01]?[0-9]/|\.[01]?[0-9]\.)[0-3]?[0-9]"
    r"|[0-3]?[0-9](?:-[0-3]?[0-9]-|/[0-3]?[0-9]/|\.[0-3]?[0-9]\.)(?:19|20)[0-9]{2})"
)
_AMOUNT: Final = r"(?:0|[1-9][0-9]{0,4})(?:\.[0-9]{1,2})?"
_UNIT: Final = (
    r"(?:(?:[GTWVALKPXkmgxp]| ?(?:[KMGT]B|mAh|Wh|[kMG]?Hz|[ckm]m|ml|kg|mg|oz|lbs?|fps|ppi|dpi|nm|USD|RMB|CNY|EUR|GBP))"
    r"(?![A-Za-z])| ?[%°¥$€£元块圆天年月日个件次寸英斤克米毫厘升小分点款度岁码人条张盒包瓶倍折秒])"
)
# What may stand in or beside such a run and is no part of it.
_SPARED: Final = (
    rf"(?:{_DAY}(?:[-–—/]{_DAY})?(?:[ T][0-9]{{1,2}}:[0-9]{{2}}(?::[0-9]{{2}}(?:\.[0-9]{{1,6}})?)?)?{_END}"
    rf"|(?:1[0-9]|20)[0-9]{{2}}[-–—/](?:1[0-9]|20)[0-9]{{2}}{_END}"
    rf"|[1-9][0-9]{{3}}-[1-9]00{_END}"  # so much off: 2000-100
    r"|[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]{1,2})?(?![0-9])"
    r"|[1-9][0-9]{0,2}(?:[. ][0-9]{3})+(?:,[0-9]{2}(?![0-9])| ?[€$£¥元])"
    rf"|(?<=[¥$€£]){_AMOUNT}(?:[-–—]{_AMOUNT})?{_END}"
    rf"|(?:{_AMOUNT}[-–—/])?{_AMOUNT}{_UNIT}"
    rf"|(?:0|[1-9][0-9]{{0,3}})\.[0-9]{{1,2}}(?:[-–—/][1-9][0-9]{{0,3}}\.[0-9]{{1,2}})?{_END})"
)
_JOINED: Final = re.compile(rf"(?<![0-9])(?:{_SPARED}|(?P<run>[0-9](?:(?:[{_SIGN}]| (?!{_SPARED}))?[0-9]){{6,}}))")
# Most texts that have seven digits have no such run.
_MAY_JOIN: Final = re.compile(rf"[0-9](?:[ {_SIGN}]?[0-9]){{6}}")
_SIGNS: Final = re.compile(rf"[ {_SIGN}]")
_STEP_MAX: Final = 10
"""Sizes and counts that are listed go up by as much at a time."""
_DIGIT: Final = re.compile(r"\d")
_OTHER_DIGIT: Final = re.compile(r"(?![0-9])\d")
_STREET: Final = re.compile(r"[路街道巷弄同村区园寓苑厦场][东西南北]?[0-9]")
_ADDRESS_ZH: Final = re.compile(
    # Where it stands in a longer address: province, city, district
    r"(?:[一-鿿]{2,7}(?:省|自治区))?(?:[一-鿿]{2,5}市)?(?:[一-鿿]{1,5}(?:区|县|镇|乡))?"
    r"[一-鿿]{1,4}(?:路|街|大街|大道|巷|弄|胡同|村|小区|花园|家园|公寓|苑|大厦|广场)"
    # A house number, but not "twenty minutes along the road".
    r"[东西南北]?(?:[0-9]{1,5}(?:号|弄|栋|幢|座|单元|楼|层|室)|[0-9]{2,5}(?![0-9一-鿿]))"
    r"(?:[A-Z0-9-]{1,6}(?:号|栋|幢|座|单元|楼|层|室)){0,5}"
)
_ROOM_ZH: Final = re.compile(r"[A-Z0-9]{1,5}(?:号楼|栋|幢|单元)(?:[A-Z0-9-]{1,6}(?:栋|幢|座|单元|楼|层|室|号)){1,4}")
_ADDRESS_EN: Final = re.compile(
    r"\b[0-9]{1,6}[A-Za-z]?,? (?:(?:North|South|East|West|[NSEW]\.?) )?(?:[A-Z0-9][A-Za-z0-9'.-]{0,24} ){1,4}"
    r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Place|Square|Terrace|Close|Way)\b\.?"
    r"(?:,? (?:Apt|Apartment|Unit|Suite|Flat|#)\.? ?[A-Za-z0-9-]{1,6})?"
    r"|\bP\.?O\.? ?Box [0-9]{1,8}"
    r"|\b[A-Z]{2} [0-9]{5}(?:-[0-9]{4})?\b"
    r"|\b(?:GIR 0AA|[A-Z]{1,2}[0-9][A-Z0-9]? [0-9][A-Z]{2})\b"
)
_ID_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def mask(text: str) -> str:
    """The text with what tells who somebody is replaced by labels.

    A text in which something may be found is normalised first (NFKC, no invisible characters, ASCII digits). Never
    raises. No run of seven digits is left, nor one joined by single signs unless it reads as days, prices or sizes.
    Time grows linearly with length.
    """
    if _SUSPECT.search(text) is None:
        lower = text.lower()
        if not any(word in lower for word in _WORDS):
            return text
    text = normalise(text)
    if not text.isascii():  # digits of other scripts that NFKC leaves
        text = _OTHER_DIGIT.sub(lambda found: str(int(found[0])), text)
    lower = text.lower()
    if any(sign in lower for sign in _AT):
        text = _EMAIL.sub("[email]", text)
        text = _USER.sub("[user]", text)
    if any(word in lower for word in _ACCOUNT_WORDS):
        text = _ACCOUNT.sub(_account, text)
    digits = len(_DIGIT.findall(text))
    if digits:
        text = _mask_digits(text, digits)
    return text if digits < NUMBER_DIGITS_MIN and text.isascii() else _NUMBER.sub("[number]", text)


def _mask_digits(text: str, digits: int) -> str:
    if digits >= NUMBER_DIGITS_MIN:
        text = _mask_numbers(text)
    if _STREET.search(text) is not None:
        text = _ADDRESS_ZH.sub("[address]", text)
    text = _ROOM_ZH.sub("[address]", text)
    text = _ADDRESS_EN.sub("[address]", text)
    if digits < NUMBER_DIGITS_MIN or _MAY_JOIN.search(text) is None:
        return text
    return _JOINED.sub(_joined, text)


def _mask_numbers(text: str) -> str:
    text = _IBAN.sub(lambda found: "[card]" if iban_valid(found[0]) else found[0], text)
    text = _ID.sub(lambda found: "[id]" if identity_valid(found[0]) else found[0], text)
    # Fifteen digits and more are no telephone, though a part of them may look like one; thirteen may be either.
    text = _CARD.sub(_long_card, text)
    text = _PHONE.sub("[phone]", text)
    return _CARD.sub(_card, text)


def excerpt(text: str, chars: int) -> str:
    """At most ``chars`` characters of the masked text, with "…" where more follows; empty for ``chars`` 0.

    Only the first few hundred characters are looked at, so the cost does not grow with the text.
    """
    if chars <= 0:
        return ""
    read = _READ_FACTOR * chars + CUT_MARGIN_CHARS
    masked = " ".join(mask(text[:read]).split())
    if len(text) > read:
        masked = masked[: max(len(masked) - CUT_MARGIN_CHARS, 0)] + "…"
    return masked if len(masked) <= chars else masked[: chars - 1].rstrip() + "…"


def luhn_valid(number: str) -> bool:
    """Whether the digits pass Luhn's test (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def identity_valid(number: str) -> bool:
    """Whether this can be a Chinese identity number: a date in it, and for 18 characters the check digit (GB 11643)."""
    born = number[6:14] if len(number) == 18 else "19" + number[6:12]
    if not ("1800" <= born[:4] <= "2199" and "01" <= born[4:6] <= "12" and "01" <= born[6:] <= "31"):
        return False
    if len(number) == 15:
        return True
    remainder = sum(int(digit) * weight for digit, weight in zip(number, _ID_WEIGHTS, strict=False)) % 11
    return number[-1].upper() == "10X98765432"[remainder]


def iban_valid(number: str) -> bool:
    """Whether the account number passes the test of ISO 13616 (MOD 97-10)."""
    plain = number.replace(" ", "")
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])) % 97 == 1


def _account(found: re.Match[str]) -> str:
    name, link = found["name"], found["link"]
    # Without a sign between them, a word of letters alone is just the next word: "wechat payment".
    if not any(letter.isdigit() for letter in name) and not link.strip():
        return found[0]
    return f"{found['word']}{link}[account]"


def _long_card(found: re.Match[str]) -> str:
    digits = re.sub(r"[ -]", "", found[0])
    if len(digits) < 15 or digits.startswith("00"):
        return found[0]
    return "[card]" if luhn_valid(digits) else "[number]"


def _card(found: re.Match[str]) -> str:
    return "[card]" if luhn_valid(re.sub(r"[ -]", "", found[0])) else found[0]


def _joined(found: re.Match[str]) -> str:
    run = found["run"]
    return found[0] if run is None or _listed(run) else "[number]"


def _listed(run: str) -> bool:
    """Whether these are numbers that go up evenly, as sizes do: 36 37 38 39, 160/165/170."""
    signs = set(_SIGNS.findall(run))
    values = [int(part) for part in _SIGNS.split(run)]
    steps = {after - before for before, after in pairwise(values)}
    return len(signs) == len(steps) == 1 and len(values) >= 3 and 1 <= steps.pop() <= _STEP_MAX
