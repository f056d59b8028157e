"""Checks that run inside a guest, and their runner; it prints one JSON line for each.

Each check gets an empty directory; after it no device-mapper device, no attached loop device and no mount may be left.
"""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from cowfs_dmthin import BACKEND, Control

Check: TypeAlias = Callable[[Path], None]


class Checks(list[Check]):
    """The checks of one program, in order; called as a decorator, it takes one in."""

    def __call__(self, check: Check) -> Check:
        self.append(check)
        return check


CONTROL = Control()
CHECK_SECONDS = 100


class Overdue(Exception):
    """A check did not end within its time."""


@contextlib.contextmanager
def expected(error: type[OSError], number: int, *texts: str) -> Iterator[None]:
    try:
        yield
    except error as found:
        if found.errno != number or not all(text in str(found) for text in texts):
            raise AssertionError(f"{errno.errorcode[number]} and {texts} were expected") from found
    else:
        raise AssertionError(f"{error.__name__} was expected")


@contextlib.contextmanager
def somebody_has_open(path: str) -> Iterator[int]:
    """The pid of a process that has a file open, until the block ends."""
    with subprocess.Popen(["sh", "-c", 'exec 3<"$0"; echo; exec cat', path], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.communicate()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def attached_loops() -> list[str]:
    return [path.parts[3] for path in Path("/sys/block").glob("loop*/loop/backing_file")]


def left_behind(mounts_before: int) -> list[str]:
    mounts = mount_points()
    return [*CONTROL.devices(), *attached_loops(), *mounts[mounts_before:]]


def mount_points() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def run_checks(checks: list[Check], chosen: Sequence[str] = ()) -> None:
    """Run all checks, or those of the names that are given."""
    assert BACKEND.probe().usable, BACKEND.probe()
    for check in checks:
        if chosen and check.__name__ not in chosen:
            continue
        begin = time.monotonic()
        reason = run_check(check)
        seconds = time.monotonic() - begin
        print(json.dumps({"id": check.__name__, "reason": reason, "seconds": round(seconds, 2)}), flush=True)


def run_check(check: Check) -> str:
    """Why it failed; empty when it did not."""
    before = len(mount_points())
    with tempfile.TemporaryDirectory(dir="/run") as name:
        try:
            with _limited_time():
                check(Path(name))
            # What the last user leaves is removed a moment later by the kernel.
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not left_behind(before))
            left = left_behind(before)
            assert not left, f"left behind: {left}"
        except Exception:
            clear(before)
            return traceback.format_exc()
    return ""


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    """`Overdue` is raised where a check stands after its time, so that its traceback names what it waits for."""

    def raise_overdue(number: int, frame: object) -> None:
        raise Overdue(f"the check did not end within {CHECK_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, raise_overdue)
    signal.alarm(CHECK_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def clear(mounts_before: int) -> None:
    """After a check that failed: so that the next one has a clean machine."""
    for point in reversed(mount_points()[mounts_before:]):
        subprocess.run(["umount", "--lazy", point], check=False)
    for _ in range(3):  # thins, then their pools
        for name in CONTROL.devices():
            with contextlib.suppress(OSError):
                CONTROL.resume(name)
            with contextlib.suppress(OSError):
                CONTROL.remove(name, deferred=True)
    subprocess.run(["losetup", "--detach-all"], check=False)
