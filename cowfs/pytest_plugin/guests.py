"""Tests on the kernel's dm-thin where this machine has none: they run in a guest, User-Mode Linux.

A session boots one guest when the first such test has its turn. In the guest another pytest runs what it is asked to
(`in_guest`), and its reports take the place of this one's. The pytest there has the same options, its temporary files
are in the guest's memory, and it ends with this process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Any, Final

import pytest

READY: Final = "ready"  # what the pytest in the guest sends first
_MEMORY: Final = "1G"
_MISSING: Final = 3  # exit status of `cowfs uml` where this machine has no such kernel
_ENDING_SECONDS: Final = 60
_LINES: Final = 4
_guest: Final = pytest.StashKey["Guest | None"]()


def run_in_guest(item: pytest.Item, is_for_guest: Callable[[pytest.Item], bool]) -> bool:
    """Run a test in the session's guest; False where it has to run here.

    Args:
        is_for_guest: which tests of the session may come.
    """
    config = item.config
    if _guest not in config.stash:
        config.stash[_guest] = None if _is_possible_here() else Guest(item.session, is_for_guest)
    guest = config.stash[_guest]
    if guest is None:
        return False
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data in guest.reports_of(item):
        report: Any = config.hook.pytest_report_from_serializable(config=config, data=data)
        if isinstance(report.longrepr, list):  # of a skip; JSON knows no tuples
            report.longrepr = tuple(report.longrepr)
        if report.failed:
            report.sections.append(("cowfs", "this test ran in User-Mode Linux, a kernel with dm-thin in a process"))
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _is_possible_here() -> bool:
    from cowfs.pool import load_backend

    return load_backend("dmthin").probe().usable


class Guest:
    """The guest of a session."""

    def __init__(self, session: pytest.Session, is_for_guest: Callable[[pytest.Item], bool]) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # until `close`
        words = [sys.executable, "-m", "cowfs", "uml", "--memory", _MEMORY, "--", *_command(session, is_for_guest)]
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            cwd=session.config.invocation_params.dir,
            start_new_session=True,  # an interrupt from the keyboard is for this pytest, which then ends the guest
        )
        session.config.add_cleanup(self.close)
        self._problem = ""
        for message in self._messages():
            if message == READY:
                return

    def reports_of(self, item: pytest.Item) -> Iterator[dict[str, Any]]:
        """The reports of one test."""
        if not self._problem:
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(item.nodeid).encode() + b"\n")
                self._process.stdin.flush()
            for message in self._messages():
                if message == item.nodeid:
                    return
                if isinstance(message, dict):
                    yield message
        yield self._report_of_problem(item)

    def _messages(self) -> Iterator[Any]:
        """Up to the end of the guest."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        self._problem = "; ".join(said[-_LINES:]).removeprefix("cowfs: ")

    def _report_of_problem(self, item: pytest.Item) -> dict[str, Any]:
        """A test that cannot run: skipped, or failed where it must run, or because the guest has broken off."""
        is_missing = self._process.wait() == _MISSING
        message = self._problem if is_missing else f"the guest in User-Mode Linux has broken off: {self._problem}"
        if is_missing and "dm" in item.config.option.cow_require:
            message += " (--cow-require=dm)"

        def fail() -> None:
            if is_missing and "dm" not in item.config.option.cow_require:
                pytest.skip(message)
            pytest.fail(message, pytrace=False)

        call = pytest.CallInfo.from_call(fail, when="setup")
        report = item.ihook.pytest_runtest_makereport(item=item, call=call)
        data: dict[str, Any] = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
        return data

    def close(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()


def _command(session: pytest.Session, is_for_guest: Callable[[pytest.Item], bool]) -> list[str]:
    """What starts pytest in the guest: with the options of this one, for the files with such tests."""
    config = session.config
    given = getattr(config, "workerinput", {}).get("mainargv", ["", *config.invocation_params.args])[1:]
    options = [word for word in given if word not in config.args]
    files = dict.fromkeys(os.fspath(item.path) for item in session.items if is_for_guest(item))
    no_workers = ["-n0"] if config.pluginmanager.hasplugin("xdist") else []
    return [
        *(sys.executable, "-m", "pytest", "-p", "cowfs.pytest_plugin.in_guest", *options, *no_workers),
        *("--rootdir", os.fspath(config.rootpath), "--capture=fd", "-o", "cache_dir=/run/cowfs-pytest-cache"),
        *("--basetemp=/run/cowfs-pytest", f"--cow-seed={config.option.cow_seed}", "--", *files),
    ]
