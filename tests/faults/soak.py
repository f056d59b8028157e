"""Random plans of faults against a mounted home under load: no hang, no traceback, and a home that is clean afterwards.

    python -m tests.faults.soak --rounds 3 --seed 7
    python -m tests.faults.soak --minutes 10

A round mounts the home, puts a plan in force while programs write, snapshots and remove, clears it, and unmounts. Then
the metadata is recounted, every device is checked by e2fsck, and each file whose fsync succeeded has its content.

A plan has two kinds of faults: honest ones, which say that they failed, anywhere; and lies (torn, lost, short and wrong
writes), for files below `/lies` alone, whose content no check relies on. With `--rough` the disks lie too: then only
what cannot be is asked for, a server that goes on without a traceback, and answers of all who look at the damage.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import cowfs
from cowfs.devices import opening
from cowfs.errors import CowfsError, HomeError, MountError, PoolError
from cowfs.ext4.tools.fsck import check_volume, prepare_for_mount
from cowfs.ext4.volume import Volume
from cowfs.faults.plan import (
    DISK_OPERATIONS,
    FILE_OPERATIONS,
    Crash,
    Error,
    NoSpace,
    PoolMode,
    PoolModeName,
    Rule,
    Tear,
    convert_rule,
)
from cowfs.home.maintenance import repair_home
from cowfs.pool import load_backend

HANG_SECONDS = 60.0
_ERRORS = ["EIO", "ENOSPC", "EDQUOT", "EAGAIN", "EINTR", "ENOMEM"]
_MODES = get_args(PoolModeName)
_LIES: list[dict[str, Any]] = [
    {"kind": "tear"},
    {"kind": "tear", "keep_bytes": 700},
    {"kind": "tear", "keep_sectors": [1, 3]},
    {"kind": "tear", "errno": "EIO"},
    {"kind": "flip"},
    {"kind": "lose"},
    {"kind": "short", "keep_bytes": 100},
]
_OPTIONS = cowfs.HomeOptions(
    data_size_bytes=256 << 20,
    metadata_size_bytes=4 << 20,
    base_size_bytes=64 << 20,
    no_space_timeout_seconds=1,
)


class Defect(AssertionError):
    """Something that faults may not do to a home."""


def rough_rule(rng: random.Random) -> Rule:
    """A disk that lies."""
    effect = rng.choice([one for one in _LIES if one["kind"] != "short"])
    operations = rng.choice([["read"], ["read", "write"]]) if effect["kind"] == "flip" else ["write"]
    if effect["kind"] == "lose" and rng.random() < 0.5:
        operations = ["flush", "discard"]
    rule = {"effect": effect, "operations": operations, "on": rng.choice(["device", "data", "metadata"])}
    return convert_rule({**rule, "probability": rng.choice([1.0, 0.3, 0.05]), "seed": rng.randrange(1000)}, "the soak")


def random_rule(rng: random.Random) -> Rule:
    """A fault that may happen to a home that must be clean afterwards."""
    return convert_rule(_random_rule(rng), "the soak")


def _random_rule(rng: random.Random) -> dict[str, Any]:
    when: dict[str, Any] = {"after": rng.choice([0, 0, 1, 5, 40]), "times": rng.choice([None, 1, 1, 3, 20])}
    when["probability"] = rng.choice([1.0, 1.0, 0.3, 0.02])
    error = {"kind": "error", "errno": rng.choice(_ERRORS)}
    if error["errno"] == "EINTR":
        when["times"] = when["times"] or 3  # Python repeats such a call until it does something else
    kind = rng.choice(["files", "files", "lies", "device", "device", "data", "metadata", "commit", "pool", "crash"])
    if kind == "lies":
        effect = rng.choice(_LIES)
        operations = ["read", "write"] if effect["kind"] == "flip" else ["write"]
        return {"effect": effect, "operations": operations, "path": "/lies/**", **when}
    if kind == "files":
        effect = rng.choice(
            [error, error, {"kind": "delay", "seconds": rng.choice([0.001, 0.05])}, {"kind": "no_space"}]
        )
        operations = rng.sample(FILE_OPERATIONS, rng.randrange(1, 5))
        return {
            "effect": effect,
            "operations": operations,
            "path": rng.choice(["", "", "*.tmp", "/w1/**", "f*"]),
            **when,
        }
    if kind == "pool":
        effect = rng.choice([{"kind": "pool_mode", "mode": rng.choice(_MODES)}, {"kind": "no_space", "of": "metadata"}])
        return {"effect": effect, "operations": ["write"], "after": rng.randrange(200), "times": 1}
    if kind == "crash":
        on = rng.choice(["device", "data", "metadata", "files"])
        operation = rng.choice(["write", "fsync", "rename"] if on == "files" else ["write", "flush"])
        return {"effect": {"kind": "crash"}, "operations": [operation], "on": on, "nth": rng.randrange(1, 200)}
    if kind == "commit":
        effect = rng.choice([error, {"kind": "delay", "seconds": 0.05}])
        return {"effect": effect, "on": "commit", "after": rng.randrange(5), "times": 1}
    effect = rng.choice([error, error, {"kind": "delay", "seconds": 0.005}, {"kind": "tear", "errno": "EIO"}])
    if kind == "device" and rng.random() < 0.2:
        effect = {"kind": "no_space"}
    operations = ["write"] if effect["kind"] == "tear" else rng.sample(DISK_OPERATIONS, rng.randrange(1, 3))
    return {"effect": effect, "operations": operations, "on": kind, **when}


@dataclass
class Worker:
    """A program in the mount: makes and changes files, and knows what it may rely on."""

    directory: Path
    lies: Path
    rng: random.Random
    solid: dict[str, bytes] = field(default_factory=dict)
    number: int = 0
    failed: int = 0
    done: int = 0
    began: float = 0.0
    problem: str = ""
    is_rough: bool = False

    def run(self, stop: threading.Event) -> None:
        actions: list[Callable[[], None]] = [
            *[self.make] * 4,
            *[self.look, self.remove, self.scratch, self.names, self.lie, self.attributes],
        ]
        try:
            while not stop.is_set():
                self.began = time.monotonic()
                try:
                    self.rng.choice(actions)()
                except OSError:
                    self.failed += 1
                    time.sleep(0.002)
                self.done += 1
        except Defect as defect:
            self.problem = str(defect)
        finally:
            self.began = 0.0

    def make(self) -> None:
        """A file that lasts once this returns."""
        self.number += 1
        name = f"f{self.number}"
        content = self.rng.randbytes(self.rng.choice([10, 3000, 5000, 70000, 300000]))
        temporary = self.directory / f"{name}.tmp"
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            _write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, self.directory / name)
        _sync_directory(self.directory)
        self.solid[name] = content

    def look(self) -> None:
        if self.solid and not self.is_rough:
            name = self.rng.choice(list(self.solid))
            if (self.directory / name).read_bytes() != self.solid[name]:
                raise Defect(f"{self.directory / name} reads as something else than was written and synced")

    def remove(self) -> None:
        if len(self.solid) > 20:
            name = self.rng.choice(list(self.solid))
            del self.solid[name]
            os.unlink(self.directory / name)

    def scratch(self) -> None:
        """Changes in place, of a file whose content no check relies on."""
        with open(self.directory / "scratch", "a+b", buffering=0) as file:
            size = self.rng.randrange(200_000)
            file.truncate(size)
            os.pwrite(file.fileno(), self.rng.randbytes(self.rng.randrange(1, 20_000)), 0)
            file.write(b"x" * 5000)
            if self.rng.random() < 0.3:
                os.fsync(file.fileno())
            if self.rng.random() < 0.2:
                os.unlink(self.directory / "scratch")  # and goes on without a name
                file.write(b"y" * 5000)

    def names(self) -> None:
        below = self.directory / f"d{self.rng.randrange(4)}"
        with contextlib.suppress(FileExistsError):
            below.mkdir()
        with contextlib.suppress(FileExistsError):
            os.symlink("x" * self.rng.choice([5, 500]), below / "symlink")
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            os.link(self.directory / "scratch", below / "link")
        with contextlib.suppress(FileNotFoundError):
            os.rename(below / "link", self.directory / "link")
        os.listdir(self.directory)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(below / "symlink")
        os.rmdir(below)

    def lie(self) -> None:
        with open(self.lies / f"l{self.rng.randrange(3)}", "wb", buffering=0) as file:
            file.write(self.rng.randbytes(self.rng.choice([100, 5000, 40000])))
            os.fsync(file.fileno())
        (self.lies / "l0").read_bytes()

    def attributes(self) -> None:
        path = self.directory / "attributes"
        path.touch()
        os.chmod(path, self.rng.choice([0o600, 0o644]))
        os.setxattr(path, "user.x", self.rng.randbytes(self.rng.choice([5, 900])))
        os.utime(path, (1, 2))
        with contextlib.suppress(OSError):
            os.removexattr(path, "user.x")


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Soak:
    """A home and what its files must hold."""

    def __init__(
        self, directory: Path, seed: int, *, backend: str = "emulated", workers: int = 2, is_rough: bool = False
    ) -> None:
        self.path = directory / "home"
        self._is_rough = is_rough
        self.backend = backend
        self.rng = random.Random(seed)
        self.seed = seed
        self.rounds = 0
        self.hits = 0
        self.operations = 0
        self.failed = 0
        self.crashes = 0
        self._hang = ""
        self._count = workers
        self._solid: list[dict[str, bytes]] = [{} for _ in range(workers)]
        self._numbers = [0] * workers
        self._plan: list[Rule] = []
        self._make()

    def _make(self) -> None:
        with cowfs.open_home(self.path, create=True, backend=self.backend, options=_OPTIONS) as home:
            home.create("web")

    def round(self, seconds: float) -> None:
        """One plan. Raises Defect."""
        self.rounds += 1
        self._plan = [random_rule(self.rng) for _ in range(self.rng.randrange(1, 5))]
        if self._is_rough:
            self._plan = [*self._plan[:1], *(rough_rule(self.rng) for _ in range(self.rng.randrange(1, 3)))]
        try:
            with cowfs.open_home(self.path, backend=self.backend) as home:
                self._under_load(home, seconds)
            if self._is_rough:
                self._look_at_damage()
            else:
                self._judge()
        except Defect as defect:
            rules = "\n  ".join(map(str, self._plan))
            raise Defect(f"seed {self.seed}, round {self.rounds}: {defect}; the plan:\n  {rules}") from defect

    def _under_load(self, home: cowfs.Home, seconds: float) -> None:
        try:
            with home.mount() as tree:
                pid = home.holder_pid
                assert pid is not None
                workers = self._workers(tree / "web")
                self._run(home, workers, pid, seconds)
        except (MountError, HomeError, PoolError) as error:
            if self._hang:
                raise Defect(self._hang) from error
            if "has not ended" in str(error) or "does not answer" in str(error):
                raise Defect(f"the server hangs: {error}") from error
            if not self._is_rough and not any(
                isinstance(rule.effect, Crash | PoolMode | NoSpace | Error | Tear) for rule in self._plan
            ):
                raise
        finally:
            self._note_log()

    def _workers(self, web: Path) -> list[Worker]:
        (web / "lies").mkdir(exist_ok=True)
        workers = []
        for number in range(self._count):
            directory = web / f"w{number}"
            directory.mkdir(exist_ok=True)
            for left in directory.iterdir():
                if left.is_file() and left.name not in self._solid[number]:
                    left.unlink()
            _sync_directory(web)
            rng = random.Random(self.rng.random())
            worker = Worker(directory, web / "lies", rng, self._solid[number], self._numbers[number])
            worker.is_rough = self._is_rough
            workers.append(worker)
        return workers

    def _run(self, home: cowfs.Home, workers: list[Worker], pid: int, seconds: float) -> None:
        stop = threading.Event()
        threads = [threading.Thread(target=worker.run, args=[stop], daemon=True) for worker in workers]
        home.faults.add(*self._plan)
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until and _lives(pid):
            with contextlib.suppress(CowfsError, ConnectionError):
                self._use(home)
            time.sleep(self.rng.random() * 0.2)
            self._require_no_hang(workers, pid)
        stop.set()
        begin = time.monotonic()
        for thread in threads:
            thread.join(max(0, begin + HANG_SECONDS - time.monotonic()))
        self._require_no_hang(workers, pid)
        if any(thread.is_alive() for thread in threads):
            raise Defect("a program hangs in the mount")
        for number, worker in enumerate(workers):
            self._numbers[number] = worker.number
            self.operations += worker.done
            self.failed += worker.failed
            if worker.problem:
                raise Defect(worker.problem)
        if _lives(pid):
            with contextlib.suppress(ConnectionError):
                self.hits += sum(report.hits for report in home.faults.clear())
        else:
            self.crashes += 1

    def _use(self, home: cowfs.Home) -> None:
        """What people do beside the programs."""
        names = [row.name for row in home.devices() if row.name not in ("base", "web")]
        action = self.rng.randrange(6)
        if action == 0 and len(names) < 4:
            home.snapshot("web", f"s{self.rng.randrange(1000)}")
        elif action == 1 and names:
            home.remove(self.rng.choice(names))
        elif action == 2:
            home.status()
        elif action == 3 and names:
            home.rename(self.rng.choice(names), f"r{self.rng.randrange(1000)}")
        elif action == 4:
            home.usage()
        elif action == 5:
            home.trim("web")

    def _require_no_hang(self, workers: list[Worker], pid: int) -> None:
        now = time.monotonic()
        for worker in workers:
            if worker.began and now - worker.began > HANG_SECONDS:
                faulthandler.dump_traceback()
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGTERM)  # at which a server that does not end logs what it does
                    time.sleep(HANG_SECONDS)
                    os.kill(pid, signal.SIGKILL)
                log = (self.path / "cowfs.log").read_text(errors="replace")
                self._hang = f"an operation in {worker.directory} took more than {HANG_SECONDS:.0f} s:\n{log[-9000:]}"
                raise Defect(self._hang)

    def _note_log(self) -> None:
        """Raises Defect for a traceback in the server's log."""
        log = self.path / "cowfs.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        if "Traceback" in text or "failed unexpectedly" in text:
            raise Defect(f"the server's log has a traceback:\n{text[-6000:]}")
        if log.exists():
            log.write_text("")

    # ------------------------------------------------------------------ afterwards

    def _judge(self) -> None:
        with cowfs.open_home(self.path, backend=self.backend) as home:
            report = home.check()
            if not report.clean:
                raise Defect(f"the metadata is not clean: {report}")
            needs_check = home.status().needs_check
        if needs_check:
            repaired = repair_home(self.path)
            if repaired.losses:
                raise Defect(f"the repair lost something: {repaired.losses}")
        with opening.open_home(self.path, load_backend(self.backend)) as devices:
            for record in devices.records():
                if record.deleted:
                    continue
                thin = devices.active.activate(record.name)
                try:
                    prepared = prepare_for_mount(thin)
                    if prepared is not None and not prepared.clean:
                        raise Defect(f"device {record.name} needed e2fsck: {prepared.output}")
                    Volume.open(thin).close()  # frees what was open without a name
                    result = check_volume(thin)
                    if not result.clean:
                        raise Defect(f"device {record.name} is not clean: {result.output}")
                finally:
                    devices.active.deactivate(record.name)
        self._require_content()

    def _look_at_damage(self) -> None:
        """A request to it gets an answer, which may be an error; then a new home takes its place."""
        with contextlib.suppress(CowfsError), cowfs.open_home(self.path, backend=self.backend) as home:
            home.check()
        with contextlib.suppress(CowfsError):
            repair_home(self.path)
        with contextlib.suppress(CowfsError):
            self._check_volumes()
        self._note_log()
        shutil.rmtree(self.path)
        self._make()
        self._solid = [{} for _ in self._solid]

    def _check_volumes(self) -> None:
        with opening.open_home(self.path, load_backend(self.backend)) as devices:
            for record in devices.records():
                with contextlib.suppress(CowfsError):
                    thin = devices.active.activate(record.name)
                    try:
                        check_volume(thin, repair=True)
                        Volume.open(thin).close()
                    finally:
                        devices.active.deactivate(record.name)

    def _require_content(self) -> None:
        with cowfs.open_home(self.path, backend=self.backend) as home, home.mount("web") as web:
            for number, solid in enumerate(self._solid):
                for name, content in solid.items():
                    path = web / f"w{number}" / name
                    try:
                        found = path.read_bytes()
                    except FileNotFoundError:
                        raise Defect(f"{path} was synced and is gone") from None
                    if found != content:
                        raise Defect(f"{path} was synced and has other content")
        self._note_log()


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cowfs-soak-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load in a round")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--rough", action="store_true", help="the disks lie, too")
    parser.add_argument("--keep", type=Path, help="use this directory, and leave it")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    end = time.monotonic() + 60 * (arguments.minutes or 0)
    with contextlib.ExitStack() as stack:
        directory = arguments.keep or stack.enter_context(_directory())
        directory.mkdir(exist_ok=True)
        soak = Soak(directory, seed, is_rough=arguments.rough)
        while soak.rounds < (arguments.rounds or 0) or time.monotonic() < end:
            soak.round(arguments.seconds)
            print(
                f"round {soak.rounds}: {soak.operations} operations, {soak.failed} failed, {soak.hits} faults met, "
                f"{soak.crashes} crashes",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
