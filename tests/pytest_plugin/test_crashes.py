"""`cow_crashes`: a program's faults are found and told, and a mark says which states."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.pytest_plugin.conftest import Suite

SUITE = """
import os

import pytest


def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def store(cow_crashes, *, sync_directory):
    with cow_crashes.record() as path:
        for number in "12":
            with open(path / "a.tmp", "w") as file:
                file.write(number * 600)
                file.flush()
                os.fsync(file.fileno())
            os.rename(path / "a.tmp", path / "a")
            if sync_directory:
                sync(path)
            cow_crashes.mark(number)


def check(path, marks):
    text = (path / "a").read_text() if (path / "a").exists() else ""
    assert text in ("", "1" * 600, "2" * 600)
    assert text[:1] >= "".join(marks)[-1:]


@pytest.mark.cow_crashes(states=10, model="posix")
def test_sound(cow_mount, cow_crashes):
    (cow_mount.path / "before").write_text("it was there")
    store(cow_crashes, sync_directory=True)
    count = 0
    for state in cow_crashes.states():
        count += 1
        with state.opened() as path:
            assert (path / "before").read_text() == "it was there"
            check(path, state.marks)
    assert count == 10


@pytest.mark.cow_crashes(states=40, model="posix")
def test_unsound(cow_crashes):
    store(cow_crashes, sync_directory=False)
    for state in cow_crashes.states():
        with state.opened() as path:
            check(path, state.marks)


def test_default(cow_crashes):
    with cow_crashes.record() as path:
        (path / "a").write_text("1")
    assert len([state.marks for state in cow_crashes.states()]) > 3


@pytest.mark.cow_crashes(model="xfs")
def test_model(cow_crashes):
    pass


@pytest.mark.cow_crashes(15)
def test_unnamed(cow_crashes):
    pass
"""


@pytest.mark.fuse
def test_a_suite_with_crash_states(suite: Callable[[str], Suite], needs_fuse: None) -> None:
    made = suite(SUITE)
    outcome = made.run("--cow-seed=1", "--strict-markers")
    assert outcome.counts == {"passed": 2, "failed": 1, "error": 2}, outcome.output
    assert "rename of a.tmp to a was lost although '1' was promised" in outcome.output
    assert "model='xfs'): it must be 'ext4' or 'posix'" in outcome.output
    assert "takes states, all and model, by name" in outcome.output
    assert ".failing" not in outcome.output
    assert made.left() == []


@pytest.mark.fuse
def test_the_state_that_failed_is_kept_and_can_be_looked_at(suite: Callable[[str], Suite], needs_fuse: None) -> None:
    """The device of the test has the last value, and the kept state what the crash left: not even the first."""
    made = suite(SUITE)
    outcome = made.run("--cow-seed=1", "--cow-keep", "-k", "unsound")
    assert outcome.counts == {"failed": 1}, outcome.output
    looks = re.findall(r"to look at it: cowfs --home (\S+) mount (\S+) DIRECTORY", outcome.output)
    (home, name), (_, state) = looks
    assert state == f"{name}.failing"
    made.account.run(["cowfs", "--home", home, "cp", f"{name}:/a", made.directory / "shown"])
    assert (made.directory / "shown").read_text() == "2" * 600
    assert "a " not in made.account.run(["cowfs", "--home", home, "ls", f"{state}:/"]).stdout
    rows = made.account.run(["cowfs", "--home", home, "list"]).stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["base", name, state]
