"""`cow_crashes`: a program's faults are found and told, and a mark says which states."""

from __future__ import annotations

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


@pytest.mark.cow_crashes(states=12, model="posix")
def test_sound(cow_mount, cow_crashes):
    (cow_mount.path / "before").write_text("it was there")
    store(cow_crashes, sync_directory=True)
    count = 0
    for state in cow_crashes.states():
        count += 1
        with state.opened() as path:
            assert (path / "before").read_text() == "it was there"
            check(path, state.marks)
    assert count == 12


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
    assert "model='xfs'): it has to be 'ext4' or 'posix'" in outcome.output
    assert "takes states, all and model, by name" in outcome.output
    assert made.left() == []
