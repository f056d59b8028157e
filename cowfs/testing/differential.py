"""Random operations on two backends side by side: the first difference, and the shortest script that shows it.

    python -m cowfs.testing.differential --seed 1 --count 20 --steps 200 --backends emulated,dmthin DIRECTORY

writes a line of JSON for each seed (`Result`); `cowfs.testing.verify` runs it in guests and adds the results up.

What is compared: the outcome of every operation (data, errno, status lines, events, mapped ranges), and at the end the
content of every thin, the verdict of all judges on both metadata files, and their dumps, to the letter.

Left out on purpose, since the backends declare to differ: what a block holds that is provisioned without zeroing, and
whether discards are passed down.

The kernel also commits by its clock, about once a second, and what is free to be allocated depends on it. So that the
clock has no say, a transaction that was open for half of that time is committed on all backends, by a line that becomes
part of the script. Where the machine was so slow that the kernel may have been first, the play counts for nothing and
is played again.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cowfs.blockdev import FileDevice
from cowfs.errors import UmlError
from cowfs.pool import Backend, load_backend
from cowfs.testing.clock import ManualClock
from cowfs.testing.conformance import DependencyInjectable
from cowfs.testing.generator import Generator
from cowfs.testing.judges import has_thin_check, recount_findings, thin_check_findings
from cowfs.testing.script import Geometry, Player, make_files
from cowfs.thinmeta.xml import dump

_COMMIT_SECONDS = 0.5
_CLOCK_SECONDS = 0.9  # before the kernel's second is over
_MOST_PLAYS = 20
_ENDING = ("resume_pool", "contents", "status", "thin_ids")


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two backends part: the script as played up to there, and what each answered last."""

    seed: int
    geometry: Geometry
    script: tuple[str, ...]
    outcomes: dict[str, str]

    def format(self) -> str:
        lines = [self.geometry.format(), *self.script]
        answers = [f"# {name}: {outcome}" for name, outcome in self.outcomes.items()]
        return "\n".join([f"# seed {self.seed}", *lines, *answers])


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one seed.

    Args:
        operations: how often each was played, by verb, and by verb and errno where it was refused.
        plays: how many it took until one was fast enough.
        thin_check: it was there to judge.
        difference: as `Difference.format` has it.
    """

    seed: int
    operations: dict[str, int]
    plays: int
    thin_check: bool
    difference: str | None


class _TooSlowError(Exception):
    """The kernel may have committed by its clock."""


class SideBySide:
    """One script on several backends, by name, each on files of its own below a directory.

    Args:
        thin_check: let it judge, too, if it is installed.
    """

    def __init__(self, backends: Mapping[str, Backend], directory: Path, *, thin_check: bool = True) -> None:
        self._backends = {name: _without_clock(backend) for name, backend in backends.items()}
        self._directory = directory
        self._operations: Counter[str] = Counter()  # of the last play
        self._plays = 0  # of the last script
        # The clock of the backends that take no other one; they commit by it.
        has_own_clock = any(not isinstance(backend, DependencyInjectable) for backend in backends.values())
        self._clock: Callable[[], float] = time.monotonic if has_own_clock else ManualClock()
        self._thin_check = thin_check and has_thin_check()

    def run(self, seed: int, steps: int) -> Result:
        """Play a random script; the first difference is shrunk."""
        generator = Generator(seed)
        geometry, script = generator.geometry, generator.script(steps)
        found = self.play(seed, geometry, script)
        operations, plays = dict(sorted(self._operations.items())), self._plays
        text = None if found is None else self.shrink(found).format()
        return Result(seed, operations, plays, self._thin_check, text)

    def first_difference(self, seeds: Iterable[int], steps: int) -> Difference | None:
        """As found, in the first seed that has one."""
        for seed in seeds:
            generator = Generator(seed)
            found = self.play(seed, generator.geometry, generator.script(steps))
            if found is not None:
                return found
        return None

    def play(self, seed: int, geometry: Geometry, script: Sequence[str]) -> Difference | None:
        """The first difference that a script makes, as found.

        Raises:
            UmlError: the machine was too slow each time.
        """
        for self._plays in range(1, _MOST_PLAYS + 1):
            folder = Path(tempfile.mkdtemp(prefix="side-by-side-", dir=self._directory))
            try:
                return self._play(folder, seed, geometry, script)
            except _TooSlowError:
                continue
            finally:
                shutil.rmtree(folder)
        raise UmlError(f"seed {seed} needs more than a second for a transaction; play it on a faster or idle machine")

    def _play(self, folder: Path, seed: int, geometry: Geometry, script: Sequence[str]) -> Difference | None:
        players: dict[str, Player] = {}
        played: list[str] = []
        self._operations.clear()
        try:
            for name, backend in self._backends.items():
                make_files(folder / name, geometry)
                pool_name = f"{folder.name}-{name}-pool"
                players[name] = Player(backend, folder / name, geometry, name=pool_name, clock=self._clock)
            for line in self._kept_short([*script, *_ENDING], players):
                played.append(line)
                outcomes = {name: player.play(line) for name, player in players.items()}
                if any(player.longest_open_seconds > _CLOCK_SECONDS for player in players.values()):
                    raise _TooSlowError
                if len(set(outcomes.values())) > 1:
                    return Difference(seed, geometry, tuple(played), outcomes)
                self._count(line, next(iter(outcomes.values())))
        finally:
            for player in players.values():
                player.close()
        verdicts = {name: self._verdict(folder / name / "metadata") for name in self._backends}
        if len(set(verdicts.values())) > 1 or any(verdict.startswith("!") for verdict in verdicts.values()):
            return Difference(seed, geometry, tuple(played[: -len(_ENDING)]), _apart(verdicts))
        return None

    def _kept_short(self, script: Iterable[str], players: Mapping[str, Player]) -> Iterator[str]:
        """A script with commits put in where a transaction has been open for long."""
        for line in script:
            if any(player.open_seconds > _COMMIT_SECONDS for player in players.values()):
                yield "commit"
            yield line

    def _count(self, line: str, outcome: str) -> None:
        verb = line.split(maxsplit=1)[0]
        self._operations[verb if not outcome.startswith("E ") else f"{verb} {outcome[2:]}"] += 1

    def shrink(self, found: Difference) -> Difference:
        """Leave out operations, in ever smaller pieces, until each that is left is needed for some difference."""
        piece = max(1, len(found.script) // 2)
        while True:
            length = len(found.script)
            begin = 0
            while begin < len(found.script):
                shorter = [*found.script[:begin], *found.script[begin + piece :]]
                smaller = self.play(found.seed, found.geometry, shorter)
                if smaller is None or len(smaller.script) >= len(found.script):
                    begin += piece
                else:
                    found = smaller
            if piece == 1 and len(found.script) == length:
                return found
            piece = max(1, piece // 2)

    def _verdict(self, metadata: Path) -> str:
        """The dump of a metadata file that all judges find clean; else `!` and their findings."""
        device = FileDevice(metadata, read_only=True)
        try:
            findings = recount_findings(device)
            if self._thin_check:
                findings += thin_check_findings(device)
            if findings:
                return "! " + "; ".join(findings)
            out = io.StringIO()
            dump(device, out)
            return out.getvalue()
        finally:
            device.close()


def _without_clock(backend: Backend) -> Backend:
    """The same backend, not committing by the clock if it can be set so."""
    if not isinstance(backend, DependencyInjectable):
        return backend
    return backend.for_tests(clock=ManualClock(), no_space_timeout_seconds=0, wrap_device=lambda _role, device: device)


def _apart(verdicts: dict[str, str]) -> dict[str, str]:
    """The first lines in which two dumps differ."""
    rows = list(zip(*(verdict.splitlines() for verdict in verdicts.values()), strict=False))
    for row in rows:
        if len(set(row)) > 1:
            return dict(zip(verdicts, row, strict=True))
    return {name: f"a dump of {len(verdict.splitlines())} lines" for name, verdict in verdicts.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cowfs.testing.differential", description=__doc__)
    parser.add_argument("directory", type=Path, help="where pool files are made")
    parser.add_argument("--seed", type=int, default=1, help="first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--stride", type=int, default=1, help="from one seed to the next")
    parser.add_argument("--steps", type=int, default=200, help="operations for each seed")
    parser.add_argument("--backends", default="emulated,dmthin")
    parser.add_argument("--script", type=Path, help="play this script instead of random ones")
    options = parser.parse_args(arguments)
    side_by_side = SideBySide({name: load_backend(name) for name in options.backends.split(",")}, options.directory)
    if options.script:
        head, *script = [line for line in options.script.read_text().splitlines() if line and line[0] != "#"]
        found = side_by_side.play(0, Geometry.parse(head), script)
        print(found.format() if found else "no difference")
        return 1 if found else 0
    for number in range(options.count):
        result = side_by_side.run(options.seed + number * options.stride, options.steps)
        print(json.dumps(dataclasses.asdict(result)), flush=True)
        if result.difference is not None:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
