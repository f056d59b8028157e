"""Tests for the kernel's dm-thin: where this machine has none for the user, they run in User-Mode Linux."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from cowfs.uml import UmlKernel
from tests.pytest_plugin.conftest import Suite
from tests.pytest_plugin.test_life import wait_until_ended

IN_GUEST = """
import os

import pytest


@pytest.fixture(scope="session")
def once():
    return os.urandom(8)


@pytest.mark.cow(backend="dmthin", data_size="64M", base_size="16M")
class TestKernel:
    seen = []

    def test_mount(self, cow_mount, once):
        self.seen.append(once)
        (cow_mount.path / "file").write_text("1")
        before = cow_mount.snapshot()
        (cow_mount.path / "file").write_text("2")
        assert [change.path for change in cow_mount.changes(before)] == ["/file"]
        cow_mount.rollback(before)
        assert (cow_mount.path / "file").read_text() == "1"
        assert cow_mount.home.status().backend == "dmthin"

    def test_disk_that_fails(self, cow_device, once):
        assert self.seen == [once]
        print("what was printed")
        assert not os.path.exists(cow_device.node)

    def test_that_is_skipped(self, cow_home):
        pytest.skip("for a reason")


def test_here(cow_home):
    assert cow_home.status().backend == "emulated"
"""

WAITING = """
import os
import signal

import pytest


@pytest.mark.cow(backend="dmthin")
def test_waits(cow_home):
    with open("ready", "w") as ready:
        ready.write("1")
    while True:
        signal.pause()
"""

WITHOUT = """
import subprocess
import sys

import pytest
from cowfs.pytest_plugin import guests

start = subprocess.Popen
script = "import sys; print('cowfs: there is no such kernel; try: apt-get install it', file=sys.stderr); sys.exit(3)"
guests.subprocess.Popen = lambda words, **options: start([sys.executable, "-c", script], **options)


@pytest.mark.cow(backend="dmthin")
def test_needs_it(cow_home):
    pass
"""


@pytest.mark.slow
def test_reports_of_the_guest_are_those_of_the_run(suite: Callable[[str], Suite], uml_kernel: UmlKernel) -> None:
    made = suite(IN_GUEST)
    outcome = made.run("-rs")
    assert outcome.counts == {"passed": 2, "failed": 1, "skipped": 1}, outcome.output
    for text in ("what was printed", "for a reason", "ran in User-Mode Linux", "it went with the guest"):
        assert text in outcome.output
    assert made.left() == []


def test_a_run_whose_tests_are_all_in_the_guest_shows_its_output() -> None:
    """The streams that the pytest in the guest takes are its own, and not those of the pytest that started it."""
    command = [sys.executable, "-c", "import cowfs.pytest_plugin.guests; print('shown')"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "shown\n"


@pytest.mark.slow
def test_a_guest_ends_with_its_pytest(suite: Callable[[str], Suite], uml_kernel: UmlKernel) -> None:
    made = suite(WAITING)
    process = made.account.start(
        made.command(), cwd=made.directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    ready = made.directory / "ready"
    try:
        while not (ready.exists() and ready.read_text()):
            assert process.poll() is None
            signal.sigtimedwait([], 0.02)
        with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
            children = [os.pidfd_open(int(pid)) for pid in file.read().split()]
        assert children
    finally:
        process.kill()
        process.wait()
    try:
        wait_until_ended(children)
    finally:
        for fd in children:
            os.close(fd)


def test_the_kernels_clock_is_not_moved(suite: Callable[[str], Suite]) -> None:
    text = "def test_minute(cow_home, cow_clock):\n    cow_clock.advance(60)\n"
    outcome = suite(text).run("-rs", "--cow-backend=dmthin", "--cow-require=dm")
    assert outcome.counts == {"skipped": 1}, outcome.output
    assert "cow_clock: the clock of the backend 'dmthin' is the kernel's, which cannot be moved" in outcome.output


@pytest.mark.parametrize("options", [(), ("--cow-require=dm",)])
def test_without_such_a_kernel(suite: Callable[[str], Suite], options: tuple[str, ...]) -> None:
    outcome = suite(WITHOUT).run("-rs", *options)
    assert outcome.counts == {"error" if options else "skipped": 1}, outcome.output
    assert "there is no such kernel; try: apt-get install it" in outcome.output
