"""The grammars, against regular expressions and arithmetic of our own, and against themselves."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cowfs.errors import UsageError
from cowfs.layers.options import values

ORACLE = re.compile(r"^(?P<number>[0-9]+(\.[0-9]+)*) ?(?P<unit>[kKmMgGtTpP])?[iI]?[bB]?$", re.DOTALL)
NEARLY_SIZES = st.from_regex(r"[0-9]{0,22}[.]?[0-9]{0,6}[ \t]?[kKmMgGtTpPeE]?[iI]?[bB]?[ x\n]?", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("1k", 1024),
        ("1 K", 1024),
        ("64KB", 65536),
        ("64kib", 65536),
        ("10Gi", 10 << 30),
        ("5i", 5),
        ("1.5g", 3 << 29),
        ("0.3k", 307),
        ("100TiB", 100 << 40),
        ("1P", 1 << 50),
        ("0010M", 10 << 20),
        ("8191P", 8191 << 50),
        ("9007199254740993", 9007199254740992),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert values.parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", " ", "G", "-1", "+1", "1.", ".5", "1.2.3", "1  K", "1\tK", "1KK", "1E", "1Bi", " 1K", "1K ", "1K\n", "٣K",
     "1\u212a", "0x10", "1e3", "8192P", "9223372036854775808", "9" * 5000],
)  # fmt: skip
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        values.parse_size(text)
    assert str(caught.value) == f"invalid size: '{text}'"


@given(NEARLY_SIZES | st.text(max_size=8))
@example("1\n")
def test_sizes_like_the_oracle(text: str) -> None:
    match = ORACLE.match(text) if not text.endswith("\n") else None
    expected = None
    if match and match["number"].count(".") < 2:
        exact = Decimal(match["number"]) * 1024 ** " kmgtp".index((match["unit"] or " ").lower())
        expected = exact if exact < 2**63 else None
    try:
        found = values.parse_size(text)
    except UsageError:
        # A float next to the limit may be rounded up to it.
        assert expected is None or expected > 2**63 - 1024
    else:
        assert expected is not None
        assert abs(found - int(expected)) <= (0 if expected < 2**52 else int(expected) >> 52)


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_true(text: str) -> None:
    assert values.parse_bool(text) is True


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_false(text: str) -> None:
    assert values.parse_bool(text) is False


@given(st.text(max_size=6).filter(lambda text: text.lower() not in {"0", "1", "t", "f", "true", "false"}))
@example("tRUE")
@example("yes")
@example("")
@example(" true")
def test_no_booleans(text: str) -> None:
    with pytest.raises(UsageError, match=r"^strconv\.ParseBool: parsing \"") as caught:
        values.parse_bool(text)
    assert str(caught.value).endswith('": invalid syntax')


def test_a_bad_boolean_is_quoted() -> None:
    with pytest.raises(UsageError) as caught:
        values.parse_bool('say "yes"')
    assert str(caught.value) == 'strconv.ParseBool: parsing "say \\"yes\\"": invalid syntax'


@given(st.integers(0, 2**64 - 1), st.integers(0, 30))
def test_unsigned_integers(value: int, zeros: int) -> None:
    assert values.parse_uint("0" * zeros + str(value)) == value


@given(st.integers(2**64, 2**70))
def test_too_large(value: int) -> None:
    with pytest.raises(UsageError) as caught:
        values.parse_uint(str(value))
    assert str(caught.value) == f'strconv.ParseUint: parsing "{value}": value out of range'


def test_thousands_of_digits() -> None:
    assert values.parse_uint("0" * 5000 + "7") == 7
    with pytest.raises(UsageError, match="value out of range"):
        values.parse_uint("1" * 5000)


@pytest.mark.parametrize("text", ["", "+1", "-1", "1_000", "0x1", " 1", "1 ", "1.0", "²", "\u0661", "1%%"])
def test_no_unsigned_integers(text: str) -> None:
    for parse in (values.parse_uint, values.parse_percent):
        with pytest.raises(UsageError, match=r"strconv\.ParseUint: parsing \".*\": invalid syntax"):
            parse(text)


@given(st.integers(-(2**31), 2**31 - 1))
def test_integers(value: int) -> None:
    assert values.parse_int(str(value)) == value
    assert values.parse_int(f"{value:+}") == value


@pytest.mark.parametrize("text", ["2147483648", "-2147483649"])
def test_integers_out_of_range(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        values.parse_int(text)
    assert str(caught.value) == f'strconv.ParseInt: parsing "{text}": value out of range'


@given(st.integers(0, 2**32 - 1), st.sampled_from(["", "%"]))
def test_percents(value: int, sign: str) -> None:
    assert values.parse_percent(f"{value}{sign}") == value
