"""What does a mounted device of its own cost a test: set-up and tear-down of `cow_mount`, and the first of a session?
And what does the plugin cost a suite that does not use it?

Expected: the first test waits for a clone of the golden home (20 ms), for cowfs to be loaded here (150 ms), and for the
server to start (500 ms). The others wait for a snapshot (2 ms), for what the test has written to be dropped (1 ms to
tens), and for the device to be removed (2 ms). Unused, the plugin is six small modules more to load (2 ms).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from bench.rig.harness import Bench
from cowfs.errors import CowfsError

LIMIT_MS = 40.0
LIMIT_FIRST_SECONDS = 1.0
LIMIT_UNUSED = 1.03
ROUNDS = 5
UNUSED_ROUNDS = 15

REPORTER = """
import json
import os

seconds = []

def pytest_runtest_logreport(report):
    seconds.append([report.nodeid, report.when, report.duration])

def pytest_unconfigure():
    if "TIMES" in os.environ:
        with open(os.environ["TIMES"], "w") as file:
            json.dump(seconds, file)
"""
USED = """
import pytest

@pytest.mark.parametrize("number", range({tests}))
def test_files(cow_mount, number):
    for name in range({files}):
        (cow_mount.path / str(name)).write_bytes(bytes(4096))
"""
UNUSED = """
import pytest

@pytest.mark.parametrize("number", range(100))
def test_nothing(number):
    pass
"""


def run(bench: Bench) -> None:
    tests = bench.size(100, 5)
    for files in (1, 100):
        _used(bench, tests, files)
    _unused(bench)


def _used(bench: Bench, tests: int, files: int) -> None:
    directory = _suite(bench, f"used-{files}", USED.format(tests=tests, files=files))
    firsts: list[float] = []
    others: list[float] = []

    def session() -> float:
        times = directory / "times.json"
        _pytest(directory, "-p", "no:xdist", env={"TIMES": str(times)})
        cost: dict[str, float] = {}
        for name, when, seconds in json.loads(times.read_text()):
            if when != "call":
                cost[name] = cost.get(name, 0.0) + seconds
        first, *rest, _last = cost.values()  # the last one's tear-down is the session's, too
        firsts.append(first)
        others.extend(rest)
        return 1000 * statistics.median(rest)

    question = f"set-up and tear-down of a test with {files} files"
    (found,) = bench.compare(question, {"cow_mount": session}, unit="ms", rounds=ROUNDS).values()
    bench.record(f"{question}, all of them", "cow_mount", "ms", [1000 * seconds for seconds in others])
    bench.goal(f"ms for {question}", found.median, at_most=LIMIT_MS, spread=found.spread)
    first = bench.record("the first of a session", "cow_mount", "s", firsts[1:])  # the first session warms up
    bench.goal(
        "seconds for the first test of a session", first.median, at_most=LIMIT_FIRST_SECONDS, spread=first.spread
    )


def _unused(bench: Bench) -> None:
    directory = _suite(bench, "unused", UNUSED)

    def session(*options: str) -> float:
        begin = _processor_seconds()
        _pytest(directory, "-p", "no:xdist", *options)
        return _processor_seconds() - begin

    found = bench.compare(
        "processor time of a suite of 100 tests that does not use the plugin",
        {"with the plugin": session, "without it": lambda: session("-p", "no:cowfs")},
        unit="s",
        rounds=UNUSED_ROUNDS,
    )
    bench.goal_ratio(
        "with the plugin / without it", found["with the plugin"], found["without it"], at_most=LIMIT_UNUSED
    )


def _processor_seconds() -> float:
    """Of processes that were waited for: what else the machine does meanwhile does not count."""
    times = os.times()
    return times.children_user + times.children_system


def _suite(bench: Bench, name: str, text: str) -> Path:
    directory = bench.directory / name
    directory.mkdir()
    (directory / "conftest.py").write_text(REPORTER)
    (directory / "test_it.py").write_text(text)
    (directory / "pytest.ini").write_text("[pytest]\n")
    return directory


def _pytest(directory: Path, *options: str, env: dict[str, str] | None = None) -> None:
    base = f"--basetemp={directory / 'base'}"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:trio", base, *options]
    done = subprocess.run(words, cwd=directory, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CowfsError(f"pytest failed:\n{done.stdout}{done.stderr}")
