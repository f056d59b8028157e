"""The grammars of option values. Every function raises UsageError for a text that is not of its grammar.

SIZE     10G, 1.5 GiB, 512, 64kb: powers of 1024 whatever the suffix, a fraction of a byte is cut off
BOOL     1 t T TRUE true True 0 f F FALSE false False
UINT     decimal digits
PERCENT  UINT, a % after it may be left out
"""

from __future__ import annotations

import re
from typing import Final

from cowfs.errors import UsageError

MAX_UINT32: Final = 2**32 - 1
MAX_UINT64: Final = 2**64 - 1
_MAX_INT64: Final = 2**63 - 1
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgtp])?i?b?", re.IGNORECASE | re.ASCII)
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})


def parse_size(text: str) -> int:
    """Bytes."""
    match = _SIZE.fullmatch(text)
    # Through a float, as the original does: beyond 2^53 the result is the nearest that a float holds.
    size = float(match[1]) * 1024 ** " kmgtp".index((match[2] or " ").lower()) if match else -1.0
    if not 0 <= size <= _MAX_INT64:
        raise UsageError(f"invalid size: '{text}'")
    return int(size)


def parse_bool(text: str) -> bool:
    if text not in _TRUE | _FALSE:
        raise _syntax_error("ParseBool", text)
    return text in _TRUE


def parse_uint(text: str, most: int = MAX_UINT64) -> int:
    return _parse_digits("ParseUint", text, text, 0, most)


def parse_int(text: str) -> int:
    """A 32-bit integer with an optional sign."""
    return _parse_digits("ParseInt", text, text[1:] if text[:1] in ("+", "-") else text, -(2**31), 2**31 - 1)


def parse_percent(text: str) -> int:
    return parse_uint(text.removesuffix("%"), MAX_UINT32)


def _parse_digits(function: str, text: str, digits: str, least: int, most: int) -> int:
    if not (digits.isascii() and digits.isdigit()):
        raise _syntax_error(function, text)
    significant = digits.lstrip("0") or "0"
    # Thousands of digits, which `int` refuses, are too many without being converted.
    value = int(significant) if len(significant) <= len(str(most)) else most + 1
    if text.startswith("-"):
        value = -value
    if not least <= value <= most:
        raise UsageError(f"strconv.{function}: parsing {_quote(text)}: value out of range")
    return value


def _syntax_error(function: str, text: str) -> UsageError:
    return UsageError(f"strconv.{function}: parsing {_quote(text)}: invalid syntax")


def _quote(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)
