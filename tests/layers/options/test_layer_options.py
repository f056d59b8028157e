"""The options of one layer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.errors import UsageError
from cowfs.layers.options import check_layer_size, parse_layer_options


@pytest.mark.parametrize(
    ("options", "size_bytes"),
    [
        (None, None),
        ({}, None),
        ({"size": "120G"}, 120 << 30),
        ({"SIZE": "1.5 gib"}, 3 << 29),
        ({"size": "1.3G"}, 1395864064),
        ({"size": "0"}, None),
        ({"size": "1G", "Size": "2G"}, 2 << 30),
    ],
)
def test_sizes(options: dict[str, str] | None, size_bytes: int | None) -> None:
    assert parse_layer_options(options) == size_bytes


def refusal(options: dict[str, str]) -> str:
    with pytest.raises(UsageError) as caught:
        parse_layer_options(options)
    return str(caught.value)


@given(
    st.dictionaries(st.text(min_size=1, max_size=5).filter(lambda key: key.lower() != "size"), st.text(), min_size=1),
    st.booleans(),
)
def test_every_unknown_key_is_found(unknown: dict[str, str], comes_first: bool) -> None:
    """Wherever it stands, and whatever stands beside it."""
    known = {"size": "1G"}
    text = refusal({**known, **unknown} if comes_first else {**unknown, **known})
    assert text == "Unknown option " + ", ".join(key.lower() for key in sorted(unknown))


def test_an_unknown_key() -> None:
    assert refusal({"Foo": "1"}) == "Unknown option foo"


def test_no_size() -> None:
    assert refusal({"size": "huge"}) == "invalid size: 'huge'"
    assert refusal({"size": ""}) == "invalid size: ''"


def test_smaller_than_the_parent() -> None:
    check_layer_size(10 << 30, 10 << 30)
    with pytest.raises(UsageError) as caught:
        check_layer_size(5 << 30, 10 << 30)
    assert str(caught.value) == "devmapper: Container size cannot be smaller than 10.74GB"
