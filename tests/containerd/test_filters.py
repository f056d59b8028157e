"""containerd's language of filters."""

from __future__ import annotations

import time

import pytest

from cowfs.containerd.filters import lookup_in, parse_filters
from cowfs.errors import UsageError

VALUES = {"name": "default/1/a b", "parent": "", "kind": "active"}
LABELS = {"x": "y", "containerd.io/gc.root": "2020", "empty": ""}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], True),
        ([""], True),
        (["kind==active"], True),
        (["kind==committed"], False),
        (["kind!=committed"], True),
        (["kind==committed", "kind==active"], True),
        (["kind==active,labels.x==y"], True),
        (["kind==active,labels.x==z"], False),
        (['labels."containerd.io/gc.root"==2020'], True),
        (['labels."containerd.io/gc.root"'], True),
        (["labels.empty"], False),
        (["labels.none"], False),
        (["labels.none!=x"], True),
        (["parent"], False),
        (['parent!=""'], False),
        (['parent==""'], True),
        (['name=="default/1/a b"'], True),
        ([r"name~=/^default\//"], True),
        (["name~=^default"], True),
        (["name~=|^default/[0-9]+|"], True),
        (["unknown==1"], False),
    ],
)
def test_what_matches(filters: list[str], expected: bool) -> None:
    assert parse_filters(filters)(lookup_in(VALUES, LABELS)) is expected


@pytest.mark.parametrize(
    "text", ["==x", "kind==", "kind=active", "a b", 'name=="open', "kind==a,", "name~=[", r"name~=/(a)\1/", "x" * 70000]
)
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(UsageError, match="filter"):
        parse_filters([text])


def test_no_regular_expression_takes_long() -> None:
    """Python's own would try each of 2**40 ways to divide the letters."""
    begin = time.process_time()
    matches = parse_filters(["name~=^(a+)+$"])
    assert not matches(lookup_in({"name": "a" * 40 + "!"}, {}))
    assert matches(lookup_in({"name": "a" * 40}, {}))
    assert time.process_time() - begin < 1
