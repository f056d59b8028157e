"""Programs of the system that engines are made of: found, run, and what they say when they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

from cowfs.errors import CowfsError
from cowfs.pool.interface import ProbeResult

_SECONDS: Final = 20.0
PATH: Final = f"{os.defpath}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin"


def find_tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=PATH)


def run_tool(*words: str | os.PathLike[str]) -> str:
    """Run a program to its end; what it printed. Raises CowfsError with the end of what it said on failure."""
    program = find_tool(os.fspath(words[0]))
    if program is None:
        raise CowfsError(f"'{os.fspath(words[0])}' is not installed")
    command = [program, *(os.fspath(word) for word in words[1:])]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CowfsError(f"'{' '.join(command)}' ended with status {done.returncode}: {last_line(done)}")
    return done.stdout


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def lacking(package: str, *names: str) -> ProbeResult | None:
    """What to say where one of these programs is not here; None when all are."""
    absent = [name for name in names if find_tool(name) is None]
    if not absent:
        return None
    return ProbeResult(usable=False, problem=f"{absent[0]} is not installed", remedy=f"sudo apt-get install {package}")


def version_of(name: str) -> str:
    """The first line of what a program says about its version."""
    program = find_tool(name)
    if program is None:
        return ""
    for option in ("--version", "-V"):
        done = subprocess.run(
            [program, option], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
        lines = (done.stdout + done.stderr).splitlines()
        if lines and done.returncode == 0:
            return lines[0].strip()
    return ""
