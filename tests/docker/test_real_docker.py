"""A real client: Docker 20.10 on the plugin, beside Docker 20.10 on its own devicemapper driver, in two guests.

The same steps (import, build, create, cp, diff, export, run, a restart of everything, commit, rm, rmi) have to come to
the same trees and the same differences.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cowfs.errors import MissingRequirement
from cowfs.uml import UmlKernel, find_kernel, run_captured
from tests.conftest import REPOSITORY
from tests.kit import docker_engine

DRIVERS = ("devicemapper", "cowfs")
SECONDS = 1200
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 60)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By driver: what the steps came to."""
    try:
        kernel = find_kernel()
        docker_engine.require()
    except MissingRequirement as error:
        pytest.skip(str(error))
    if os.geteuid() != 0:
        pytest.skip("dockerd needs files of its own owners, which only root can make; run: sudo make test")
    directory = tmp_path_factory.mktemp("docker")

    def run(driver: str) -> dict[str, Any]:
        return in_guest(kernel, driver, directory / driver)

    with ThreadPoolExecutor() as pool:
        return dict(zip(DRIVERS, pool.map(run, DRIVERS), strict=True))


def in_guest(kernel: UmlKernel, driver: str, directory: Path) -> dict[str, Any]:
    done = run_captured(
        [sys.executable, "-m", "tests.docker.guest_docker", driver, str(directory)],
        kernel=kernel,
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        memory_bytes=2 << 30,
        timeout_seconds=SECONDS,
    )
    assert done.returncode == 0, f"{driver}: {done.stderr}"
    result: dict[str, Any] = json.loads(done.stdout)
    return result


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


def test_a_home_on_xfs_is_read_without_docker(results: dict[str, dict[str, Any]]) -> None:
    """What Docker itself says of it is the judge; what was saved loads with the same ids."""
    xfs = results["devicemapper"]["xfs"]
    assert xfs["docker"]["filesystem"] == "xfs"
    assert xfs["loaded"]["ids loaded"] == xfs["loaded"]["ids read"]
    assert set(xfs["loaded"]["ids read"]) == {"built:latest", "image:latest"}
    assert xfs["loaded"]["layers"] == xfs["docker"]["layers"]
    assert xfs["loaded"]["run"] == "changed\n"
    assert xfs["loaded"]["containers"] == ["one"]
    ours = {name: fields for name, fields in xfs["loaded"]["export"].items() if name != "."}
    assert {name.rstrip("/"): fields for name, fields in xfs["docker"]["export"].items()} == ours


def test_a_home_on_xfs_is_compared_and_mounted(results: dict[str, dict[str, Any]]) -> None:
    xfs = results["devicemapper"]["xfs"]
    ours, theirs = set(xfs["without"]["layer changes"]), set(xfs["docker"]["diff"])
    assert theirs <= ours
    # Docker compares with a layer between the two, which has what it puts into every container.
    assert {line.split("/")[1] for line in ours - theirs} == {".dockerenv", "dev", "etc", "proc", "sys"}
    assert xfs["without"]["copied"] == "added\n"
    assert {"built:latest", "image:latest", "one"} <= set(xfs["without"]["du"])
    assert "usr/share/there/added/deep/file" in xfs["without"]["layer diff"]
    assert {"bin", "etc", "tmp", "usr", "var", "added"} <= set(xfs["without"]["mount"]["names"])
    assert xfs["without"]["mount"]["changed"] == "changed\n"


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
