"""A home of Docker 20.10 whose devices have xfs, in a guest: read without Docker, and loaded by it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(steps_of: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return steps_of("xfs")


def test_a_home_on_xfs_is_read_without_docker(results: dict[str, Any]) -> None:
    """What Docker itself says of it is the judge; what was saved loads with the same ids."""
    assert results["docker"]["filesystem"] == "xfs"
    assert results["loaded"]["ids loaded"] == results["loaded"]["ids read"]
    assert set(results["loaded"]["ids read"]) == {"built:latest", "image:latest"}
    assert results["loaded"]["layers"] == results["docker"]["layers"]
    assert results["loaded"]["run"] == "changed\n"
    assert results["loaded"]["containers"] == ["one"]
    ours = {name: fields for name, fields in results["loaded"]["export"].items() if name != "."}
    assert {name.rstrip("/"): fields for name, fields in results["docker"]["export"].items()} == ours


def test_a_home_on_xfs_is_compared_and_mounted(results: dict[str, Any]) -> None:
    ours, theirs = set(results["without"]["layer changes"]), set(results["docker"]["diff"])
    assert theirs <= ours
    # Docker compares with a layer between the two, which has what it puts into every container.
    assert {line.split("/")[1] for line in ours - theirs} == {".dockerenv", "dev", "etc", "proc", "sys"}
    assert results["without"]["copied"] == "added\n"
    assert {"built:latest", "image:latest", "one"} <= set(results["without"]["du"])
    assert "usr/share/there/added/deep/file" in results["without"]["layer diff"]
    assert {"bin", "etc", "tmp", "usr", "var", "added"} <= set(results["without"]["mount"]["names"])
    assert results["without"]["mount"]["changed"] == "changed\n"
