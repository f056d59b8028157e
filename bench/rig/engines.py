"""Engines of `cowfs bench` as contenders of a program, and one that is only here: libfuse's passthrough_ll."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.rig.harness import Bench
from cowfs.benchmarks.engines.catalogue import Wanted, usable
from cowfs.benchmarks.engines.interface import WORKS, Contender, Engine, Offer, Setting
from cowfs.benchmarks.engines.served import OneMount, served
from cowfs.benchmarks.engines.tools import lacking, run_tool
from cowfs.pool.interface import ProbeResult

_EXAMPLE: Final = Path("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c")


def set_up(bench: Bench, engines: Sequence[Engine], stack: ExitStack) -> list[Contender]:
    """Those of the engines that work here, until the stack is closed; the others are named in the question."""
    wanted, missing = usable([Wanted(engine.name, engine, None) for engine in engines])
    for absent in missing:
        bench.without(absent.name, absent.problem, absent.remedy)
    contenders = []
    for one in wanted:
        directory = bench.directory / one.name
        directory.mkdir()
        contenders.append(stack.enter_context(one.engine.set_up(Setting(one.name, directory))))
    return contenders


@contextmanager
def _set_up(setting: Setting) -> Iterator[Contender]:
    source, target, program = (setting.directory / name for name in ("source", "mnt", "passthrough_ll"))
    source.mkdir()
    target.mkdir()
    flags = run_tool("pkg-config", "--cflags", "--libs", "fuse3").split()
    subprocess.run(["gcc", "-O2", "-w", "-o", os.fspath(program), os.fspath(_EXAMPLE), *flags], check=True)
    options = f"source={source},cache=always,timeout=86400"
    command = [os.fspath(program), "-f", "-o", options, os.fspath(target)]
    with served(command, target, setting.directory / "log") as server:
        yield OneMount(setting, server.pid)


def _look() -> ProbeResult:
    if not _EXAMPLE.exists():
        return ProbeResult(usable=False, problem=f"{_EXAMPLE} is not here", remedy="sudo apt-get install libfuse3-dev")
    return lacking("gcc pkg-config", "gcc", "pkg-config") or WORKS


PASSTHROUGH: Final = Engine(
    "passthrough_ll", "libfuse's example in C: a directory through FUSE", Offer.TREE, _look, _set_up
)
