"""Random operations on both backends side by side, and that the comparison notices planted bugs."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cowfs.errors import InvalidRequest, ThinExists
from cowfs.pool import Capability, Pool, PoolTable, ProbeResult, load_backend
from cowfs.testing.differential import Generator, SideBySide
from cowfs.testing.script import Geometry, is_operation
from cowfs.uml import UmlKernel, run
from tests.conftest import REPOSITORY, session_seed

SEEDS = 6
STEPS = 200
EMULATED = load_backend("emulated")


def test_no_difference_to_the_kernel(uml_kernel: UmlKernel) -> None:
    """More: cowfs verify --seed N --count 200"""
    output: list[bytes] = []
    errors: list[bytes] = []
    seeds = ["--seed", str(session_seed() * 10_000), "--count", str(SEEDS), "--steps", str(STEPS)]
    status = run(
        [sys.executable, "-m", "cowfs.testing.differential", *seeds, "/run"],
        kernel=uml_kernel,
        cwd=REPOSITORY,
        timeout_seconds=280,
        stdout=output.append,
        stderr=errors.append,
    )
    text = b"".join(output).decode()
    assert status == 0, text + b"".join(errors).decode()
    assert [json.loads(line)["differences"] for line in text.splitlines()] == [0] * SEEDS


@pytest.mark.parametrize("seed", range(20))
def test_generated_scripts_are_scripts(seed: int) -> None:
    generator = Generator(seed)
    assert Geometry.parse(generator.geometry.format()) == generator.geometry
    assert all(is_operation(line) for line in generator.script(200))
    assert generator.script(50) != Generator(seed).script(50)
    assert Generator(seed).script(50) == Generator(seed).script(50)


# --- planted bugs: the emulated backend beside a copy of itself that lies in one way


class Proxy:
    """Another object, but for what a subclass does itself."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class BuggyBackend:
    """Emulated pools whose thins and pools pass through two functions."""

    name = "buggy"
    capabilities: Capability = EMULATED.capabilities

    def __init__(self, thin: Callable[[Any], Any], pool: type[Proxy]) -> None:
        self._thin = thin
        self._pool = pool

    def probe(self) -> ProbeResult:
        return ProbeResult(usable=True)

    def open_pool(self, name: str, table: PoolTable, *, durable: bool = True) -> Pool:
        pool: Any = self._pool(EMULATED.open_pool(name, table, durable=durable))
        activate = pool.activate
        pool.activate = lambda *args, **options: self._thin(activate(*args, **options))
        return pool  # type: ignore[no-any-return]


class DiscardsTooMuch(Proxy):
    def discard(self, offset: int, length: int) -> None:
        begin = offset // self.block_bytes * self.block_bytes
        self._inner.discard(begin, offset + length - begin)


class ForgetsTheTail(Proxy):
    def pwrite(self, offset: int, data: bytes) -> None:
        self._inner.pwrite(offset, data[: max(1, len(data) - 1)])


class WritesAroundWithZeros(Proxy):
    """A partial write loses what a fresh or shared block held around it."""

    def pwrite(self, offset: int, data: bytes) -> None:
        self._inner.pwrite(offset, data)
        rest = -(offset + len(data)) % self.block_bytes
        if rest and offset + len(data) + rest <= self.size_bytes:
            self._inner.pwrite(offset + len(data), bytes(rest))


class ProvisionsOnRead(Proxy):
    def pread(self, offset: int, length: int) -> bytes:
        data: bytes = self._inner.pread(offset, length)
        if not any(data):
            self._inner.pwrite(offset, bytes(min(length, 512)))
        return data


class CreatesTwice(Proxy):
    def message(self, text: str) -> None:
        try:
            self._inner.message(text)
        except ThinExists:
            if not text.startswith("create_thin"):
                raise


class SwapsWithoutComparing(Proxy):
    def message(self, text: str) -> None:
        if text.startswith("set_transaction_id"):
            text = f"set_transaction_id {self.status().transaction_id} {text.split()[2]}"
        self._inner.message(text)


class OtherErrno(Proxy):
    def message(self, text: str) -> None:
        try:
            self._inner.message(text)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            raise InvalidRequest("no such thin") from error


class SnapshotsTheWrongThing(Proxy):
    """Every snapshot is an empty thin."""

    def message(self, text: str) -> None:
        words = text.split()
        if words[0] == "create_snap" and int(words[2]) in self.thin_ids() and int(words[1]) not in self.thin_ids():
            text = f"create_thin {words[1]}"
        self._inner.message(text)


class CountsOneTooMany(Proxy):
    def status(self, *, flush: bool = True) -> Any:
        found = self._inner.status(flush=flush)
        return replace(found, used_data_blocks=found.used_data_blocks + 1)


@pytest.mark.parametrize("bug", [DiscardsTooMuch, ForgetsTheTail, WritesAroundWithZeros, ProvisionsOnRead])
def test_a_bug_planted_in_thins_is_found(bug: type[Proxy], tmp_path: Path) -> None:
    require_found(BuggyBackend(bug, Proxy), tmp_path)


@pytest.mark.parametrize(
    "bug", [CreatesTwice, SwapsWithoutComparing, OtherErrno, SnapshotsTheWrongThing, CountsOneTooMany]
)
def test_a_bug_planted_in_pools_is_found(bug: type[Proxy], tmp_path: Path) -> None:
    require_found(BuggyBackend(lambda thin: thin, bug), tmp_path)


def require_found(buggy: BuggyBackend, directory: Path) -> None:
    """It is found within three seeds, and shrunk to a script that shows it again."""
    side_by_side = SideBySide({"emulated": EMULATED, "buggy": buggy}, directory)
    found = next(filter(None, (side_by_side.run(seed, STEPS) for seed in range(3))), None)
    assert found is not None
    smaller = side_by_side.shrink(found)
    print(smaller.format())
    assert len(smaller.script) <= 8
    again = side_by_side.play(smaller.seed, smaller.geometry, smaller.script)
    assert again is not None
    assert again.outcomes == smaller.outcomes


def test_the_emulated_backend_does_not_differ_from_itself(tmp_path: Path) -> None:
    honest = BuggyBackend(lambda thin: thin, Proxy)
    side_by_side = SideBySide({"emulated": EMULATED, "buggy": honest}, tmp_path)
    for seed in range(4):
        assert side_by_side.run(seed, STEPS) is None
