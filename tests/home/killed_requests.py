"""kill -9 in the middle of rollbacks, of many creations at once, and of renames: python -m tests.home.killed_requests

Each round forks a process that changes a home again and again, and says on a pipe what it begins and what it has done.
It is killed at a random moment. Then the home is opened and judged: it is as before the operation that was cut short or
as after it, its metadata has no error and no leak, recovery finds nothing to do, and e2fsck finds every volume clean.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import msgspec

import cowfs
from cowfs.devices import opening
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.ext4.tools.fsck import check_volume
from cowfs.home.recovery import recover_home
from cowfs.pool import load_backend

OPTIONS = HomeOptions(data_size_bytes=256 << 20, metadata_size_bytes=4 << 20, base_size_bytes=16 << 20)
LONGEST_SECONDS = 0.06
MAX_DEVICES = 10
TAG_BYTES = 4096  # at the end of a device, in a block that its file system does not use
OPERATIONS = ("rollback", "rollback", "keep", "create", "rename", "remove", "write")


@dataclass(frozen=True)
class Device:
    """What a device holds, and which one it is a snapshot of, by a number that no name changes."""

    number: int
    parent: int
    tag: str


Model = dict[str, Device]


class Operation(msgspec.Struct, frozen=True):
    kind: str
    name: str
    other: str = ""
    made: list[str] = []
    tag: str = ""

    def applied_to(self, model: Model, number: int) -> Model:
        """What the home is afterwards; new devices have numbers from `number`."""
        after = dict(model)
        if self.kind == "create":
            for i, name in enumerate(self.made):
                after[name] = Device(number + i, model[self.name].number, model[self.name].tag)
        elif self.kind == "remove":
            del after[self.name]
        elif self.kind == "rename":
            after[self.other] = after.pop(self.name)
        elif self.kind == "write":
            after[self.name] = replace(model[self.name], tag=self.tag)
        else:
            for name in self.made:
                after[name] = Device(number, model[self.name].number, model[self.name].tag)
            after[self.name] = replace(model[self.name], tag=model[self.other].tag)
        return after

    def carry_out(self, home: cowfs.Home) -> None:
        if self.kind == "create":
            home.create_many(self.made, parent=self.name)
        elif self.kind == "remove":
            home.remove(self.name)
        elif self.kind == "rename":
            home.rename(self.name, self.other)
        elif self.kind == "write":
            with home.device(self.name) as disk:
                disk.pwrite(disk.size_bytes - TAG_BYTES, self.tag.encode().ljust(TAG_BYTES, b"\0"))
        else:
            home.rollback(self.name, self.other, keep=self.made[0] if self.made else None)


def choose(model: Model, number: int, rng: random.Random) -> Operation:
    names = sorted(name for name in model if name != "base")
    if len(names) < 2:
        return Operation("create", "base", made=[f"d{number}", f"d{number + 1}"])
    kind = "remove" if len(names) > MAX_DEVICES else rng.choice(OPERATIONS)
    name, other = rng.sample(names, 2)
    new = f"d{number}"
    if kind == "create":
        return Operation(kind, name, made=[f"d{number + i}" for i in range(rng.randint(2, 4))])
    made = [new] if kind == "keep" else []
    return Operation(kind, name, f"r{number}" if kind == "rename" else other, made, tag=f"tag {number}")


def change_for_ever(home: Path, model: Model, number: int, rng: random.Random, told: IO[bytes]) -> None:
    with cowfs.open_home(home) as opened:
        told.write(b"ready\n")
        told.flush()
        while True:
            operation = choose(model, number, rng)
            told.write(msgspec.json.encode(operation) + b"\n")
            told.flush()
            operation.carry_out(opened)
            told.write(b"done\n")
            told.flush()
            model, number = operation.applied_to(model, number), number + 10


def killed_round(home: Path, model: Model, number: int, rng: random.Random) -> tuple[list[Operation], bool]:
    """The operations that a process began, and whether the last one was done, when it was killed."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reads)
            change_for_ever(home, model, number, random.Random(rng.random()), os.fdopen(writes, "wb"))
        finally:
            os._exit(1)
    os.close(writes)
    with os.fdopen(reads, "rb") as told:
        try:
            assert told.readline() == b"ready\n"
            select.select([], [], [], rng.random() * LONGEST_SECONDS)
        finally:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        lines = told.read().split(b"\n")[:-1]
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    began = [msgspec.json.decode(line, type=Operation) for line in lines if line != b"done"]
    return began, not lines or lines[-1] == b"done"


def found_in(home: Path) -> dict[str, tuple[str, str | None]]:
    """Tag and parent of each device, after every judge was asked."""
    with cowfs.open_home(home) as opened:
        report = opened.check()
        assert report.clean, report
        rows = opened.devices()
        found = {}
        for row in rows:
            with opened.device(row.name, read_only=True) as disk:
                tag = disk.pread(disk.size_bytes - TAG_BYTES, TAG_BYTES).rstrip(b"\0").decode()
                checked = check_volume(disk)
                assert checked.clean, (row.name, checked.output)
            found[row.name] = (tag, row.parent)
    recovery = recover_home(home, "emulated", dry_run=True)
    assert recovery.findings == [], recovery
    return found


def expected(model: Model) -> dict[str, tuple[str, str | None]]:
    names = {device.number: name for name, device in model.items()}
    return {name: (device.tag, names.get(device.parent)) for name, device in model.items()}


def kill(home: Path, rounds: int, seed: int, seconds: float = float("inf")) -> Counter[str]:
    """How often which operation was cut short, and to what end. `seed` is that of the first round."""
    opening.make_home(home, load_backend("emulated"), OPTIONS).close()
    model: Model = {"base": Device(0, -1, "")}
    number = 10
    outcomes: Counter[str] = Counter()
    until = time.monotonic() + seconds
    for this in range(seed, seed + rounds):
        if time.monotonic() > until:
            break
        outcomes["rounds"] += 1
        began, is_done = killed_round(home, model, number, random.Random(this))
        for operation in began[:-1] if began and not is_done else began:
            model, number = operation.applied_to(model, number), number + 10
        found = found_in(home)
        if not began or is_done:
            assert found == expected(model), this
            continue
        after = began[-1].applied_to(model, number)
        assert found in (expected(model), expected(after)), (this, began[-1], found, expected(model), expected(after))
        is_after = found == expected(after)
        outcomes[f"{began[-1].kind}, {'after' if is_after else 'before'}"] += 1
        model, number = (after if is_after else model), number + 10
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cowfs-kills-") as directory:
        for outcome, count in sorted(
            kill(Path(directory) / "home", options.rounds, options.seed, options.seconds).items()
        ):
            print(f"{count:5} {outcome}")


if __name__ == "__main__":
    main()
