"""How long does it take from nothing to a mounted snapshot: four commands, `init`, `create`, `snapshot`, `mount`?
And what does a command cost besides what Python's own start costs?

Expected: each command is a Python start with imports, some 100 ms; init runs mke2fs (some 30 ms) and copies what it
wrote; mount starts a second process with pyfuse3 and trio (200 ms): some 700 ms in all.
Python's start reads the installed packages' `.pth` files; a quick command adds click, msgspec and the engine to that,
some four times as much.
"""

from __future__ import annotations

import compileall
import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import cowfs
import cowfs_emulated
from bench.rig.harness import Bench, timed

LIMIT_SECONDS = 1.0
LIMIT_STARTS_OF_PYTHON = 6.0
COMMAND_ROUNDS = 15


def run(bench: Bench) -> None:
    _from_nothing(bench)
    _quick_commands(bench)


def _from_nothing(bench: Bench) -> None:
    numbers = itertools.count()
    program = _program()
    steps: dict[str, list[float]] = {}

    def from_nothing() -> float:
        directory = bench.directory / str(next(numbers))
        target = directory / "mnt"
        target.mkdir(parents=True)
        home = [program, "--home", str(directory / "home")]
        commands = {
            "init": [*home, "init"],
            "create": [*home, "create", "web"],
            "snapshot": [*home, "snapshot", "web", "web-1"],
            "mount": [*home, "mount", "web-1", str(target)],
        }
        try:
            for name, command in commands.items():
                run_command = partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
                steps.setdefault(name, []).append(timed(run_command))
        finally:
            subprocess.run([program, "umount", str(target)], check=True)
        return sum(times[-1] for times in steps.values())

    (found,) = bench.compare("init, create, snapshot, mount", {"cowfs": from_nothing}, unit="s").values()
    for name, times in steps.items():
        bench.record(f"of which {name}", "cowfs", "s", times)
    bench.goal("seconds from nothing to a mounted snapshot", found.median, at_most=LIMIT_SECONDS)


def _quick_commands(bench: Bench) -> None:
    """CPU of commands on a home that is not held, beside `python3 -c pass`, in turns."""
    # Else every start compiles what it imports, where bytecode is not written (PYTHONDONTWRITEBYTECODE).
    for package in (cowfs, cowfs_emulated):
        compileall.compile_dir(package.__path__[0], quiet=2)
    numbers = itertools.count()
    home = [_program(), "--home", str(bench.directory / "quick")]
    subprocess.run([*home, "init"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*home, "create", "web"], check=True, stdout=subprocess.DEVNULL)
    found = bench.compare(
        "CPU of a command",
        {
            "python3 -c pass": lambda: _cpu_ms([sys.executable, "-c", "pass"]),
            "list": lambda: _cpu_ms([*home, "list"]),
            "status": lambda: _cpu_ms([*home, "status"]),
            "create": lambda: _cpu_ms([*home, "create", f"device-{next(numbers)}"]),
            "snapshot": lambda: _cpu_ms([*home, "snapshot", "web", f"web-{next(numbers)}"]),
        },
        unit="ms",
        rounds=COMMAND_ROUNDS,
    )
    start = found.pop("python3 -c pass")
    for name, command in found.items():
        bench.goal_ratio(f"CPU of {name}, in starts of Python", command, start, at_most=LIMIT_STARTS_OF_PYTHON)


def _cpu_ms(command: list[str]) -> float:
    """User and system time of a program that succeeds."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    _, status, used = os.wait4(os.posix_spawn(command[0], command, os.environ, file_actions=quiet), 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return (used.ru_utime + used.ru_stime) * 1000


def _program() -> str:
    return str(Path(sys.executable).with_name("cowfs"))
