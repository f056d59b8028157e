"""kill -9 in the middle of changes of devices, of copies and imports: python -m tests.home.killed_requests

Each round forks a process that changes a home again and again, and says on a pipe what it begins and what it has
done. It is killed after a random processor time, so that a busy machine moves no moment to the start of a round. Then
the home is opened and judged: it is as before the operation that was cut short or as after it, its metadata has no
error and no leak, recovery finds nothing to do, and e2fsck finds every volume clean. Trees that were copied into
devices are whole, there and in their snapshots; one whose copying was cut short may be there in part. A copy of the
home is whole, or no home.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import msgspec

import cowfs
from cowfs.devices import opening
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.errors import NotAHome
from cowfs.ext4.tools.fsck import check_volume
from cowfs.home.recovery import recover_home
from cowfs.home.requests.files import WantedFile
from cowfs.pool import load_backend

OPTIONS = HomeOptions(data_size_bytes=256 << 20, metadata_size_bytes=4 << 20, base_size_bytes=16 << 20)
LONGEST_SECONDS = 0.06  # of processor time
MAX_DEVICES = 10
MAX_TREES = 20  # in a device; some more would fill it
TAG_BYTES = 4096  # at the end of a device, in a block that its file system does not use
OPERATIONS = ("rollback", "rollback", "keep", "create", "rename", "remove", "write", "copy")
LONG = ("chain", "clone", "copy")  # what every second round begins with
LONGEST_OF_THOSE_SECONDS = 0.1
TREE = {f"file {number}": bytes([number]) * (number * 9000) for number in range(8)}


@dataclass(frozen=True)
class Device:
    """What a device holds, and which one it is a snapshot of, by a number that no name changes.

    `trees`: the directories in its root that are whole.
    """

    number: int
    parent: int
    tag: str
    trees: tuple[str, ...] = ()


Model = dict[str, Device]
Found = dict[str, tuple[str, str | None, list[str]]]  # tag, parent and trees


class Operation(msgspec.Struct, frozen=True):
    kind: str
    name: str
    other: str = ""
    made: list[str] = []
    tag: str = ""
    sources: list[str] = []  # of a chain: what each of `made` is as,
    parents: list[int | None] = []  # and which of them is its parent

    def applied_to(self, model: Model, number: int) -> Model:
        """What the home is afterwards; new devices have numbers from `number`."""
        after = dict(model)
        if self.kind == "create":
            for i, name in enumerate(self.made):
                after[name] = replace(model[self.name], number=number + i, parent=model[self.name].number)
        elif self.kind == "chain":
            for i, (name, source, parent) in enumerate(zip(self.made, self.sources, self.parents, strict=True)):
                above = -1 if parent is None else number + parent
                after[name] = replace(model[source], number=number + i, parent=above)
        elif self.kind == "clone":
            pass
        elif self.kind == "copy":
            after[self.name] = replace(model[self.name], trees=(*model[self.name].trees, self.other))
        elif self.kind == "remove":
            del after[self.name]
        elif self.kind == "rename":
            after[self.other] = after.pop(self.name)
        elif self.kind == "write":
            after[self.name] = replace(model[self.name], tag=self.tag)
        else:
            for name in self.made:
                after[name] = replace(model[self.name], number=number, parent=model[self.name].number)
            after[self.name] = replace(model[self.name], tag=model[self.other].tag, trees=model[self.other].trees)
        return after

    def carry_out(self, home: cowfs.Home, beside: Path) -> None:
        if self.kind == "copy":
            home.copy_in(beside / "tree", self.name, f"/{self.other}")
        elif self.kind == "chain":
            home.import_chain(beside / "chain")
        elif self.kind == "clone":
            home.clone(beside / "clone")
        elif self.kind == "create":
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
    if kind == "copy" and len(model[name].trees) == MAX_TREES:
        kind = "remove"
    new = f"d{number}"
    if kind == "create":
        return Operation(kind, name, made=[f"d{number + i}" for i in range(rng.randint(2, 4))])
    if kind == "copy":
        return Operation(kind, name, f"tree {number}")
    made = [new] if kind == "keep" else []
    return Operation(kind, name, f"r{number}" if kind == "rename" else other, made, tag=f"tag {number}")


def choose_long(home: Path, model: Model, number: int, rng: random.Random) -> Operation:
    """An operation that takes a while; what it needs is beside the home."""
    name = rng.choice(sorted(name for name in model if name != "base"))
    kind = rng.choice(LONG if len(model[name].trees) < MAX_TREES else LONG[:-1])
    if kind != "chain":
        return Operation(kind, name, f"tree {number}")
    path = home.parent / "chain"
    shutil.rmtree(path, ignore_errors=True)
    with cowfs.open_home(home) as opened:
        opened.export_chain(name, path)
    chain = msgspec.json.decode((path / "chain.json").read_bytes())
    sources = [device["name"] for device in chain["devices"]]
    made = [f"d{number}-{i}" for i in range(len(sources))]
    for device, new in zip(chain["devices"], made, strict=True):
        device["name"] = new
    (path / "chain.json").write_bytes(msgspec.json.encode(chain))
    parents = [device["parent"] for device in chain["devices"]]
    return Operation(kind, name, made=made, sources=sources, parents=parents)


def change_for_ever(
    home: Path, model: Model, number: int, rng: random.Random, first: Operation | None, told: IO[bytes]
) -> None:
    with cowfs.open_home(home) as opened:
        # The kernel ends this process by the signal's default action, as SIGKILL does: nothing of Python runs.
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, rng.uniform(1e-6, LONGEST_OF_THOSE_SECONDS if first else LONGEST_SECONDS))
        while True:
            operation, first = first or choose(model, number, rng), None
            told.write(msgspec.json.encode(operation) + b"\n")
            told.flush()
            operation.carry_out(opened, home.parent)
            told.write(b"done\n")
            told.flush()
            model, number = operation.applied_to(model, number), number + 10


def killed_round(home: Path, model: Model, number: int, rng: random.Random) -> tuple[list[Operation], bool]:
    """The operations that a process began, and whether the last one was done, when it was killed."""
    has_long = len(model) > 1 and rng.random() < 0.5
    first = choose_long(home, model, number, rng) if has_long else None
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reads)
            change_for_ever(home, model, number, random.Random(rng.random()), first, os.fdopen(writes, "wb"))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writes)
    try:
        with os.fdopen(reads, "rb") as told:
            lines = told.read().split(b"\n")[:-1]
    finally:
        status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == -signal.SIGPROF
    began = [msgspec.json.decode(line, type=Operation) for line in lines if line != b"done"]
    return began, not lines or lines[-1] == b"done"


def found_in(home: Path, last: Operation | None) -> Found:
    """What each device holds, after every judge was asked.

    Args:
        last: what was cut short. A copy of files is completed, in the volume whose journal is replayed with that.
    """
    with cowfs.open_home(home) as opened:
        report = opened.check()
        assert report.clean, report
        if last is not None and last.kind == "copy":
            opened.copy_in(f"{home.parent}/tree/.", last.name, f"/{last.other}")
        found = {}
        for row in opened.devices():
            trees = sorted(info.name for info in opened.list_files(row.name) if info.name.startswith("tree"))
            require_whole(opened, row.name, trees)
            with opened.device(row.name, read_only=True) as disk:
                tag = disk.pread(disk.size_bytes - TAG_BYTES, TAG_BYTES).rstrip(b"\0").decode()
                checked = check_volume(disk)
                assert checked.clean, (row.name, checked.output)
            found[row.name] = (tag, row.parent, trees)
    recovery = recover_home(home, "emulated", dry_run=True)
    assert recovery.findings == [], recovery
    return found


def require_whole(home: cowfs.Home, name: str, trees: list[str]) -> None:
    wanted = [WantedFile(f"/{tree}/{file}".encode(), len(content)) for tree in trees for file, content in TREE.items()]
    read = bytearray()
    home.read_files(name, wanted, read.extend)
    assert read == b"".join(TREE.values()) * len(trees), (name, trees)


def judge_clone(home: Path, model: Model) -> str:
    """What a copy of a home is that was cut short: whole, which is judged, or nothing that is taken for a home."""
    clone = home.parent / "clone"
    try:
        found = found_in(clone, None)
    except NotAHome:
        return "no home"
    finally:
        shutil.rmtree(clone, ignore_errors=True)
    assert found == expected(model)
    return "whole"


def expected(model: Model) -> Found:
    names = {device.number: name for name, device in model.items()}
    return {name: (device.tag, names.get(device.parent), sorted(device.trees)) for name, device in model.items()}


def kill(home: Path, rounds: int, seed: int, seconds: float = float("inf")) -> Counter[str]:
    """How often which operation was cut short, and to what end. `seed` is that of the first round."""
    opening.make_home(home, load_backend("emulated"), OPTIONS).close()
    (home.parent / "tree").mkdir()
    for name, content in TREE.items():
        (home.parent / "tree" / name).write_bytes(content)
    model: Model = {"base": Device(0, -1, "")}
    number = 10
    outcomes: Counter[str] = Counter()
    until = time.monotonic() + seconds
    for this in range(seed, seed + rounds):
        if time.monotonic() > until:
            break
        outcomes["rounds"] += 1
        began, is_done = killed_round(home, model, number, random.Random(this))
        cut_short = began[-1] if began and not is_done else None
        for operation in began[:-1] if cut_short else began:
            if operation.kind == "clone":
                assert judge_clone(home, model) == "whole"
            model, number = operation.applied_to(model, number), number + 10
        found = found_in(home, cut_short)
        if cut_short is None:
            assert found == expected(model), this
            continue
        after = cut_short.applied_to(model, number)
        assert found in (expected(model), expected(after)), (this, cut_short, found, expected(model), expected(after))
        is_after = found == expected(after)
        outcome = judge_clone(home, model) if cut_short.kind == "clone" else "after" if is_after else "before"
        outcomes[f"{cut_short.kind}, {outcome}"] += 1
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
