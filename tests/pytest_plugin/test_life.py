"""Nothing of a session outlives its pytest, however that ends; and workers, forks and event loops."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cowfs.mounts.mountinfo import mounts
from tests.pytest_plugin.conftest import Suite

ENDING_SECONDS = 60

WAITING = """
import os
import signal
import sys


def test_waits(cow_mount, cow_home):
    (cow_mount.path / "file").write_text("hello")
    with open("/proc/self/task/%d/children" % os.getpid()) as file:
        children = file.read()
    with open("ready", "w") as ready:
        ready.write(f"{os.getpid()} {children}")
    while True:
        signal.pause()
"""

FORKS = """
import multiprocessing
import os
import subprocess
import sys

from cowfs.errors import ForkedError


def test_a_fork_uses_files_and_not_the_home(cow_mount):
    child = os.fork()
    if child == 0:
        (cow_mount.path / "file").write_text("from the child")
        try:
            cow_mount.snapshot()
        except ForkedError:
            os._exit(3)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert (cow_mount.path / "file").read_text() == "from the child"


def test_a_fork_that_ends_as_a_program_does_leaves_all_as_it_is(cow_mount):
    child = os.fork()
    if child == 0:
        sys.exit(4)  # through all that pytest has on its stack
    assert os.waitpid(child, 0)
    (cow_mount.path / "file").write_text("is there")
    cow_mount.snapshot()


def test_a_program(cow_mount):
    subprocess.run([sys.executable, "-c", "open('file', 'w').write('hello')"], cwd=cow_mount.path, check=True)
    assert (cow_mount.path / "file").read_text() == "hello"
"""

LOOPS = """
import pytest
import trio


async def test_of_trio(cow_mount, nursery):
    before = await trio.to_thread.run_sync(cow_mount.snapshot)

    async def write(name):
        async with await trio.open_file(cow_mount.path / name, "w") as file:
            await file.write(name)

    async with trio.open_nursery() as inner:
        for number in range(3):
            inner.start_soon(write, str(number))
    assert [change.path for change in cow_mount.changes(before)] == ["/0", "/1", "/2"]


async def test_of_trio_that_fails(cow_mount):
    raise ValueError("as it should")
"""


@contextmanager
def started(made: Suite, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A pytest that runs `WAITING` and has everything open."""
    process = made.account.start(
        made.command(options), cwd=made.directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def pids_of(made: Suite, process: subprocess.Popen[str]) -> list[int]:
    """The process that runs the test, and those that it has started, once the test is there."""
    ready = made.directory / "ready"
    while not (ready.exists() and ready.read_text()):
        assert process.poll() is None, process.communicate()[0]
        select.select([], [], [], 0.01)
    return [int(word) for word in ready.read_text().split()]


def wait_until_ended(fds: list[int]) -> None:
    for fd in fds:
        assert select.select([fd], [], [], ENDING_SECONDS)[0], "a process has outlived its pytest"


def mounted_below(directory: Path) -> list[str]:
    return [mount.target for mount in mounts() if os.path.commonpath([mount.target, directory]) == str(directory)]


@pytest.mark.fuse
@pytest.mark.parametrize(
    ("end", "options"),
    [(signal.SIGKILL, ()), (signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGKILL, ("-n", "1"))],
    ids=["kill", "interrupt", "terminate", "kill with xdist"],
)
def test_nothing_outlives_a_session_that_is_ended(
    suite: Callable[[str], Suite], end: signal.Signals, options: tuple[str, ...]
) -> None:
    made = suite(WAITING).with_every_plugin() if options else suite(WAITING)
    with started(made, *options) as process, ExitStack() as stack:
        pids = pids_of(made, process)
        assert len(pids) >= 3  # the test's, the server's, the janitor's
        fds = [os.pidfd_open(pid) for pid in pids]
        for fd in fds:
            stack.callback(os.close, fd)
        assert mounted_below(made.directory)
        process.send_signal(end)
        if end is signal.SIGKILL:
            os.kill(pids[0], end)
        wait_until_ended(fds)
    assert not mounted_below(made.directory)
    assert made.left() == []


@pytest.mark.fuse
def test_a_server_that_is_killed_with_its_pytest_leaves_no_mount(suite: Callable[[str], Suite]) -> None:
    made = suite(WAITING)
    with started(made) as process, ExitStack() as stack:
        pids = pids_of(made, process)
        fds = {pid: os.pidfd_open(pid) for pid in pids}
        for fd in fds.values():
            stack.callback(os.close, fd)
        janitors = [pid for pid in pids if "janitor.py" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(janitors) == 1
        for pid in pids:
            if pid not in janitors:
                signal.pidfd_send_signal(fds[pid], signal.SIGKILL)
        wait_until_ended(list(fds.values()))
    assert not mounted_below(made.directory)
    assert made.left() == []


@pytest.mark.fuse
def test_forks_and_programs_of_a_test(suite: Callable[[str], Suite]) -> None:
    made = suite(FORKS)
    outcome = made.run("-s")
    assert outcome.output.splitlines()[-1].startswith("3 passed"), outcome.output  # before it, the forked one's
    assert made.left() == []


@pytest.mark.fuse
def test_workers_of_xdist_have_a_session_each(suite: Callable[[str], Suite]) -> None:
    made = suite(
        "import pytest\n"
        "@pytest.mark.parametrize('number', range(8))\n"
        "def test_own(cow_mount, worker_id, number):\n"
        "    (cow_mount.path / 'file').write_text(worker_id)\n"
        "    assert f'popen-{worker_id}' in str(cow_mount.home.path)\n"
        "def test_seed(pytestconfig): assert pytestconfig.option.cow_seed == 7\n"
    ).with_every_plugin()
    outcome = made.run("-n", "2", "--cow-seed=7")
    assert outcome.counts == {"passed": 9}, outcome.output
    assert made.left() == []


@pytest.mark.fuse
def test_tests_of_trio(suite: Callable[[str], Suite]) -> None:
    made = suite(LOOPS).with_every_plugin()
    outcome = made.run("-o", "trio_mode=true")
    assert outcome.counts == {"passed": 1, "failed": 1}, outcome.output
    assert "ValueError: as it should" in outcome.output
    assert made.left() == []
