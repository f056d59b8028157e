"""Rates of control operations, by ioctls and by dmsetup; run inside User-Mode Linux, for bench.control.

python -m bench.rig.guest_control QUICK      QUICK is true or false; prints the lines of a result as JSON
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Protocol

import msgspec

from bench.rig.harness import ROUNDS, Bench, timed
from bench.rig.pools import BLOCK_SECTORS, make_files
from cowfs.benchmarks.results import Question
from cowfs.benchmarks.runner import Watcher, begin_result
from cowfs.cli.bench_output import scratch
from cowfs.errors import MissingRequirement
from cowfs.pool import load_backend

OURS: Final = "ioctls"
THEIRS: Final = "dmsetup"
ORIGIN: Final = 0
LENGTH_SECTORS: Final = 64 * BLOCK_SECTORS


class Side(Protocol):
    """A pool with thin `ORIGIN`, and one way to control it."""

    def message(self, text: str) -> None: ...

    def status(self) -> None: ...

    def set_up_and_remove(self) -> None:
        """A device for thin `ORIGIN`."""
        ...


class Ioctls:
    def __init__(self, directory: Path, running: ExitStack) -> None:
        table = make_files(directory, data_blocks=256, metadata_bytes=16 << 20)
        self._pool = load_backend("dmthin").open_pool("ours-pool", table)
        running.callback(self._pool.close)

    def message(self, text: str) -> None:
        self._pool.message(text)

    def status(self) -> None:
        self._pool.status()

    def set_up_and_remove(self) -> None:
        self._pool.activate("thin", ORIGIN, LENGTH_SECTORS).close()


class Dmsetup:
    def __init__(self, directory: Path, running: ExitStack) -> None:
        table = make_files(directory, data_blocks=256, metadata_bytes=16 << 20)
        metadata, data = (
            running.enter_context(loop_device(path)) for path in (table.metadata_device, table.data_device)
        )
        self._dmsetup = program("dmsetup")
        line = table.replace(metadata_device=metadata, data_device=data).format()
        self._run("create", "theirs-pool", "--table", line)
        running.callback(self._run, "remove", "theirs-pool")

    def message(self, text: str) -> None:
        self._run("message", "theirs-pool", "0", text)

    def status(self) -> None:
        self._run("status", "theirs-pool")

    def set_up_and_remove(self) -> None:
        line = f"0 {LENGTH_SECTORS} thin /dev/mapper/theirs-pool {ORIGIN}"
        self._run("create", "theirs-thin", "--table", line)
        self._run("remove", "theirs-thin")

    def _run(self, *arguments: str) -> None:
        subprocess.run([self._dmsetup, *arguments], stdout=subprocess.PIPE, check=True)


@contextmanager
def loop_device(path: str) -> Iterator[str]:
    losetup = program("losetup")
    shown = subprocess.run([losetup, "--find", "--show", path], stdout=subprocess.PIPE, text=True, check=True)
    try:
        yield shown.stdout.strip()
    finally:
        subprocess.run([losetup, "--detach", shown.stdout.strip()], check=True)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingRequirement(f"{name} is not installed", remedy="make packages-bench")
    return found


def questions(side: Side, operations: int) -> dict[str, Callable[[], float]]:
    """Each carries out so many operations, and gives how many that is a second."""
    ids = range(1, 1 + operations)

    def rate(action: Callable[[], None]) -> float:
        return operations / timed(action)

    def each(text: str) -> Callable[[], None]:
        def send() -> None:
            for thin_id in ids:
                side.message(text.format(thin_id))

        return send

    def repeated(action: Callable[[], None]) -> Callable[[], None]:
        def repeat() -> None:
            for _ in ids:
                action()

        return repeat

    make, snap, delete = each("create_thin {}"), each(f"create_snap {{}} {ORIGIN}"), each("delete {}")

    def then_deleted(action: Callable[[], None]) -> float:
        found = rate(action)
        delete()
        return found

    def deleting() -> float:
        snap()
        return rate(delete)

    return {
        "create": lambda: then_deleted(make),
        "snapshot": lambda: then_deleted(snap),
        "delete": deleting,
        "status": lambda: rate(repeated(side.status)),
        "set up and remove a device": lambda: rate(repeated(side.set_up_and_remove)),
    }


def main(quick: bool) -> None:
    with scratch("/run") as directory, ExitStack() as running:
        result = begin_result(directory, rounds=ROUNDS, seed=1)
        bench = Bench(directory, Question("control", "", "", {}, []), result, Watcher(), quick)
        sides: dict[str, Side] = {
            OURS: Ioctls(directory / OURS, running),
            THEIRS: Dmsetup(directory / THEIRS, running),
        }
        for side in sides.values():
            side.message(f"create_thin {ORIGIN}")
        # As many as take about as long.
        operations = {OURS: bench.size(500, 10), THEIRS: bench.size(15, 3)}
        asked = {name: questions(side, operations[name]) for name, side in sides.items()}
        for question in asked[OURS]:
            bench.compare(question, {name: asked[name][question] for name in sides}, unit="operations/s")
    sys.stdout.buffer.write(msgspec.json.encode(bench.question.lines))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
