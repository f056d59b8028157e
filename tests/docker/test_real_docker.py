"""A real client: Docker 20.10 on the plugin, beside Docker 20.10 on its own devicemapper driver, in two guests.

The same steps (import, build, create, cp, diff, export, run, a restart of everything, commit, rm, rmi) have to come to
the same trees and the same differences.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

DRIVERS = ("devicemapper", "cowfs")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(steps_of: Callable[[str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By driver: what the steps came to."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(DRIVERS, pool.map(steps_of, DRIVERS), strict=True))


def test_the_status_has_the_same_items(results: dict[str, dict[str, Any]]) -> None:
    """But for the loop devices, which are the kernel's."""
    ours, theirs = (results[driver]["status names"] for driver in ("cowfs", "devicemapper"))
    assert ours == [name for name in theirs if name not in ("Data loop file", "Metadata loop file")]


def test_a_file_that_is_named_as_a_whiteout_is_committed(results: dict[str, dict[str, Any]]) -> None:
    """Under its substitute, and what it would have deleted is there."""
    found = results["cowfs"]["reserved"]
    assert set(found) == {"etc/changed", "etc/.cowfs-name.wh.changed"}
    assert found["etc/.cowfs-name.wh.changed"][4] == len("no whiteout\n")


def test_docker_loads_what_was_saved_without_it(results: dict[str, dict[str, Any]]) -> None:
    """The images of its own driver, read while no daemon ran: the same ids, the same layers, and they run."""
    theirs = results["devicemapper"]
    ours = theirs["offline"]
    assert set(ours["ids read"]) == {"built:latest", "image:latest"}
    assert ours["ids loaded"] == ours["ids read"]
    assert ours["layers"] == theirs["layers"]
    assert ours["run"] == theirs["run"]


def test_docker_runs_what_was_pushed_to_a_registry(results: dict[str, dict[str, Any]]) -> None:
    """One of the daemon's images after a home of layers, with its id; and one more layer on it, made there."""
    found = results["devicemapper"]["registry"]
    assert found["run"] == "made here\n"
    assert found["ids"] == [found["id"]] * 4
    assert found["states"] == ["present"]
    assert found["check"]


def test_containers_are_exported_without_docker(results: dict[str, dict[str, Any]]) -> None:
    theirs = results["devicemapper"]
    assert theirs["offline"]["containers"] == ["one"]
    ours = {name: fields for name, fields in theirs["offline"]["export"].items() if name != "."}
    assert {name.rstrip("/"): fields for name, fields in theirs["export"].items()} == ours


@pytest.mark.parametrize(
    "what",
    [
        "layers",
        "diff",
        "export",
        "run",
        "substitutes",
        "diff after a restart",
        "export after a restart",
        "copied out",
        "committed layer",
        "images after rmi",
    ],
)
def test_both_drivers_come_to_the_same(results: dict[str, dict[str, Any]], what: str) -> None:
    ours, theirs = results["cowfs"][what], results["devicemapper"][what]
    assert theirs or what == "images after rmi"
    assert ours == theirs
