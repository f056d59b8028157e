"""Random operations on two backends side by side: the first difference, and the shortest script that shows it.

    python -m cowfs.testing.differential --seed 1 --count 20 --steps 200 --backends emulated,dmthin DIRECTORY

Left out on purpose, since the backends declare to differ: what a block holds that is provisioned without zeroing, and
whether discards are passed down.

What is compared: the outcome of every operation (data, errno, status lines, mapped ranges), and at the end the content
of every thin, cowfs' recount of both metadata files, and their dumps.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cowfs.blockdev import FileDevice
from cowfs.pool import Backend, load_backend
from cowfs.testing.judges import recount_findings
from cowfs.testing.script import Geometry, Player, make_files
from cowfs.thinmeta.xml import dump
from cowfs.units import SECTOR_BYTES

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


class Generator:
    """Makes operations from a seed, with a rough idea of what there is so that most of them make sense."""

    def __init__(self, seed: int) -> None:
        self._rng = rng = random.Random(f"cowfs differential {seed}")  # noqa: S311
        self.geometry = Geometry(
            block=rng.choice([128, 128, 128, 256, 384]),
            data=rng.choice([12, 40, 40, 100]),
            metadata=rng.choice([96, 256, 256, 1024]),
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
        self._backends = backends
        self._directory = directory

    def run(self, seed: int, steps: int) -> Difference | None:
        """Play a random script; the first difference as found."""
        generator = Generator(seed)
        script = generator.script(steps)
        return self.play(seed, generator.geometry, script)

    def play(self, seed: int, geometry: Geometry, script: Sequence[str]) -> Difference | None:
        folder = Path(tempfile.mkdtemp(prefix="side-by-side-", dir=self._directory))
        try:
            return self._play(folder, seed, geometry, script)
        finally:
            shutil.rmtree(folder)

    def _play(self, folder: Path, seed: int, geometry: Geometry, script: Sequence[str]) -> Difference | None:
        players: dict[str, Player] = {}
        try:
            for name, backend in self._backends.items():
                make_files(folder / name, geometry)
                players[name] = Player(backend, folder / name, geometry, name=f"{folder.name}-{name}-pool")
            for number, line in enumerate([*script, *_ENDING]):
                outcomes = {name: player.play(line) for name, player in players.items()}
                if len(set(outcomes.values())) > 1:
                    return Difference(seed, geometry, (*script[:number], line), outcomes)
        finally:
            for player in players.values():
                player.close()
        verdicts = {name: _verdict(folder / name / "metadata") for name in self._backends}
        if len(set(verdicts.values())) > 1 or any(verdict.startswith("!") for verdict in verdicts.values()):
            return Difference(seed, geometry, tuple(script), _apart(verdicts))
        return None

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


def _verdict(metadata: Path) -> str:
    """The dump of a metadata file that the recount finds clean; else `!` and its findings."""
    device = FileDevice(metadata, read_only=True)
    try:
        findings = recount_findings(device)
        if findings:
            return "! " + "; ".join(findings)
        out = io.StringIO()
        dump(device, out)
        return out.getvalue()
    finally:
        device.close()


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
    for seed in range(options.seed, options.seed + options.count):
        found = side_by_side.run(seed, options.steps)
        if found is not None:
            print(side_by_side.shrink(found).format())
            return 1
        print(json.dumps({"seed": seed, "steps": options.steps, "differences": 0}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
