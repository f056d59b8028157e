"""Random operations on two backends side by side: the first difference, and the shortest script that shows it.

    python -m cowfs.testing.differential --seed 1 --count 20 --steps 200 --backends emulated,dmthin DIRECTORY

writes a line of JSON for each seed (`Result`); `cowfs.testing.verify` runs it in guests and adds the results up.

What is compared: the outcome of every operation (data, errno, status lines, events, mapped ranges), and at the end the
content of every thin, the verdict of all judges on both metadata files, and their dumps, to the letter.

Left out on purpose, since the backends declare to differ: what a block holds that is provisioned without zeroing, and
whether discards are passed down.

The kernel also commits by its clock, about once a second, and what is free to be allocated depends on it. A difference
that such a commit made does not come a second time; the seed is then played again with a commit after each change,
where the clock has no say.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cowfs.blockdev import FileDevice
from cowfs.pool import Backend, load_backend
from cowfs.testing.clock import ManualClock
from cowfs.testing.conformance import Adjustable
from cowfs.testing.generator import Generator
from cowfs.testing.judges import has_thin_check, recount_findings, thin_check_findings
from cowfs.testing.script import Geometry, Player, make_files
from cowfs.thinmeta.xml import dump

_TRIES = 2  # of a script that made a difference
_ENDING = ("resume_pool", "contents", "status", "thin_ids")


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two backends part: the script up to there, and what each answered last."""

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
        by_clock: the first try met a commit by the clock, and this is of the second.
        thin_check: it was there to judge.
        difference: as `Difference.format` tells it.
    """

    seed: int
    operations: dict[str, int]
    by_clock: bool
    thin_check: bool
    difference: str | None


class SideBySide:
    """One script on several backends, by name, each on files of its own below a directory.

    Args:
        thin_check: let it judge, too, if it is installed.
    """

    def __init__(self, backends: Mapping[str, Backend], directory: Path, *, thin_check: bool = True) -> None:
        self._backends = {name: _without_clock(backend) for name, backend in backends.items()}
        self._directory = directory
        self._operations: Counter[str] = Counter()  # of the last play
        self._thin_check = thin_check and has_thin_check()

    def run(self, seed: int, steps: int) -> Result:
        """Play a random script; the first difference is shrunk."""
        generator = Generator(seed)
        geometry, script = generator.geometry, generator.script(steps)
        found = self.play(seed, geometry, script)
        by_clock = found is not None and not self._comes_again(found)
        if by_clock:
            geometry = dataclasses.replace(geometry, commit_each=True)
            found = self.play(seed, geometry, script)
        operations = dict(sorted(self._operations.items()))
        text = None if found is None else self.shrink(found).format()
        return Result(seed, operations, by_clock, self._thin_check, text)

    def first_difference(self, seeds: Iterable[int], steps: int) -> Difference | None:
        """As found, in the first seed that has one."""
        for seed in seeds:
            generator = Generator(seed)
            found = self.play(seed, generator.geometry, generator.script(steps))
            if found is not None:
                return found
        return None

    def _comes_again(self, found: Difference) -> bool:
        again = (self.play(found.seed, found.geometry, found.script) for _ in range(_TRIES))
        return all(difference is not None for difference in again)

    def play(self, seed: int, geometry: Geometry, script: Sequence[str]) -> Difference | None:
        """The first difference that a script makes, as found."""
        folder = Path(tempfile.mkdtemp(prefix="side-by-side-", dir=self._directory))
        try:
            return self._play(folder, seed, geometry, script)
        finally:
            shutil.rmtree(folder)

    def _play(self, folder: Path, seed: int, geometry: Geometry, script: Sequence[str]) -> Difference | None:
        players: dict[str, Player] = {}
        self._operations.clear()
        try:
            for name, backend in self._backends.items():
                make_files(folder / name, geometry)
                players[name] = Player(backend, folder / name, geometry, name=f"{folder.name}-{name}-pool")
            for number, line in enumerate([*script, *_ENDING]):
                outcomes = {name: player.play(line) for name, player in players.items()}
                if len(set(outcomes.values())) > 1:
                    return Difference(seed, geometry, (*script[:number], line), outcomes)
                self._count(line, next(iter(outcomes.values())))
        finally:
            for player in players.values():
                player.close()
        verdicts = {name: self._verdict(folder / name / "metadata") for name in self._backends}
        if len(set(verdicts.values())) > 1 or any(verdict.startswith("!") for verdict in verdicts.values()):
            return Difference(seed, geometry, tuple(script), _apart(verdicts))
        return None

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
    """The same backend, not committing by the clock if it can be told not to."""
    if not isinstance(backend, Adjustable):
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
