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
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cowfs.blockdev import FileDevice
from cowfs.pool import Backend, load_backend
from cowfs.testing.clock import ManualClock
from cowfs.testing.conformance import Adjustable
from cowfs.testing.judges import has_thin_check, recount_findings, thin_check_findings
from cowfs.testing.script import Geometry, Player, make_files
from cowfs.thinmeta.xml import dump
from cowfs.units import SECTOR_BYTES

_SMALL_METADATA_BLOCKS = 96  # few enough to be used up
_TRIES = 2  # of a script that made a difference
_ENDING = ("resume_pool", "contents", "status", "thin_ids")
# Verb -> weight. Reading verbs are cheap to check and frequent, since they show a difference near its cause.
_WEIGHTS = {
    "write": 30,
    "read": 8,
    "discard": 8,
    "flush": 5,
    "create_thin": 6,
    "create_snap": 12,
    "delete": 6,
    "status": 8,
    "thin_status": 4,
    "extents": 4,
    "events": 3,
    "deactivate": 3,
    "suspend": 1,
    "resume": 1,
    "suspend_pool": 1,
    "resume_pool": 2,
    "resize": 1,
    "set_transaction_id": 2,
    "reserve_metadata_snap": 1,
    "release_metadata_snap": 1,
    "grow_data": 1,
    "grow_metadata": 1,
    "reopen": 2,
    "exhaust": 1,
    "exhaust_metadata": 1,
    "thin_ids": 1,
}


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


class Generator:
    """Makes operations from a seed, with a rough idea of what there is so that most of them make sense."""

    def __init__(self, seed: int) -> None:
        self._rng = rng = random.Random(f"cowfs differential {seed}")  # noqa: S311
        self.geometry = Geometry(
            block=rng.choice([128, 128, 128, 256, 384]),
            data=rng.choice([12, 40, 40, 100]),
            metadata=rng.choice([_SMALL_METADATA_BLOCKS, 256, 256, 1024]),
            thin=rng.choice([24 * 128, 24 * 128 + 16, 40 * 384]),
            low_water=rng.choice([0, 3]),
        )
        self._ids: list[int] = []
        self._serial = 0
        self._transaction_id = 0

    def script(self, steps: int) -> list[str]:
        weights = dict(_WEIGHTS)
        if self.geometry.block & (self.geometry.block - 1):
            # Linux drops some discards of devices whose granularity is not a power of two.
            del weights["discard"]
        if self.geometry.metadata == _SMALL_METADATA_BLOCKS:
            # How often a transaction takes the metadata below its low water mark and back is each backend's own.
            del weights["events"]
            weights["grow_metadata"] = 5
        else:
            del weights["exhaust_metadata"]
        verbs = self._rng.choices(list(weights), list(weights.values()), k=steps)
        return ["create_thin 0", *(self._operation(verb) for verb in verbs)]

    def _operation(self, verb: str) -> str:
        return " ".join([verb, *map(str, self._arguments(verb))])

    def _arguments(self, verb: str) -> Sequence[int]:
        rng = self._rng
        if verb in ("write", "discard", "read"):
            offset, length = self._range()
            if verb != "write":
                return self._thin_id(), offset, length
            self._serial += 1
            return self._thin_id(), offset, length, self._serial
        if verb == "exhaust":
            self._serial += 1
            return self._thin_id(), self._serial
        if verb == "exhaust_metadata":
            return (1000,)
        if verb == "create_thin":
            return (self._new_id(),)
        if verb == "create_snap":
            origin = self._thin_id()
            return self._new_id(), origin
        if verb == "delete":
            return (self._thin_id(),)
        if verb in ("flush", "suspend", "resume", "deactivate", "thin_status", "extents"):
            return (self._thin_id(),)
        if verb == "resize":
            return self._thin_id(), rng.choice([self.geometry.thin, self.geometry.thin + 128, 1024])
        if verb == "set_transaction_id":
            old, self._transaction_id = self._transaction_id, rng.randrange(1000)
            return (old if rng.random() < 0.8 else old + 1), self._transaction_id
        if verb in ("grow_data", "grow_metadata"):
            return (rng.choice([1, 8, 64]),)
        return ()

    def _range(self) -> tuple[int, int]:
        rng = self._rng
        size = self.geometry.thin * SECTOR_BYTES
        block = self.geometry.block * SECTOR_BYTES
        if rng.random() < 0.5:
            offset = rng.randrange(-(-size // block)) * block
            length = rng.randint(1, 6) * block
        else:
            offset = rng.randrange(size)
            length = rng.choice([1, 512, 4096, block, 3 * block])
        return offset, max(1, min(length, size - offset))

    def _thin_id(self) -> int:
        return self._rng.choice([*self._ids, 0, self._rng.randrange(12)])

    def _new_id(self) -> int:
        thin_id = self._rng.randrange(12)
        self._ids = sorted({*self._ids, thin_id})
        return thin_id


class SideBySide:
    """One script on several backends, by name, each on files of its own below a directory."""

    def __init__(self, backends: Mapping[str, Backend], directory: Path) -> None:
        self._backends = {name: _without_clock(backend) for name, backend in backends.items()}
        self._directory = directory
        self._operations: Counter[str] = Counter()  # of the last play
        self._thin_check = has_thin_check()

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

    def shrink(self, found: Difference) -> Difference:
        """Leave out operations, in ever smaller pieces, as long as some difference remains."""
        piece = max(1, len(found.script) // 2)
        while True:
            begin = 0
            while begin < len(found.script):
                shorter = [*found.script[:begin], *found.script[begin + piece :]]
                smaller = self.play(found.seed, found.geometry, shorter)
                if smaller is None or len(smaller.script) >= len(found.script):
                    begin += piece
                else:
                    found = smaller
            if piece == 1:
                return found
            piece //= 2


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
