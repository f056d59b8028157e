"""The order of all writes of random operations is safe, and a wrong order is found: see `write_order`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.ext4.format import layout
from cowfs.ext4.journal import journal
from cowfs.ext4.journal.journal import Journal
from cowfs.ext4.library import metadata_cache
from cowfs.ext4.library.filesystem import Filesystem
from tests.conftest import session_seed
from tests.ext4.conftest import FEATURE_SETS, MIB
from tests.ext4.crash_world import DISK, CrashWorld, make_image
from tests.ext4.write_order import order_problems

RUNS = int(os.environ.get("COWFS_TEST_CRASHES", "1"))


def problems(
    directory: Path, features: str, seed: str, *, operations: int, has_little_memory: bool = False
) -> Iterator[str]:
    options = FEATURE_SETS[features]
    size = 4 * MIB if "1024" in options else 16 * MIB
    blocks = [] if "-b" in options else ["-b", "4096"]
    image = make_image(directory / "volume.img", [*blocks, *options], size)
    world = CrashWorld(image, seed, has_little_memory=has_little_memory)
    world.run(operations)
    return order_problems(bytearray(world.journal.bases[DISK]), world.journal.entries)


@pytest.mark.parametrize(("features", "log_kib"), [("default", 32), ("no-extents-1k", 256)])
@pytest.mark.parametrize("number", range(RUNS))
def test_no_crash_between_two_flushes_can_do_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: str, log_kib: int, number: int
) -> None:
    """Where the log begins anew at every few commits, and where what is committed comes to its place early."""
    monkeypatch.setattr(journal, "_LOG_BYTES", log_kib << 10)
    monkeypatch.setattr(metadata_cache, "_BYTES_MIN", 4 << 10)
    seed = f"{session_seed()} {features} {log_kib} {number}"
    found = list(problems(tmp_path, features, seed, operations=100, has_little_memory=log_kib > 32))
    assert not found, f"seed {seed}: {found[:5]}"


def _checkpoint_without_flush(self: Journal) -> None:
    self._fs.cache.write_committed()
    self._on_device = journal._OnDevice.UNKNOWN
    self._head = self._first
    self._logged.clear()


def _mark_in_use_on_device_only(self: Filesystem) -> None:
    mark_in_use(self)
    self.super.s_feature_incompat &= ~layout.INCOMPAT_RECOVER


mark_in_use = Filesystem.mark_in_use
_never = property(lambda _: False, lambda *_: None)


@pytest.mark.parametrize(
    ("owner", "name", "fault", "log_kib", "words"),
    [
        (Journal, "_checkpoint", _checkpoint_without_flush, 32, "is not in its place"),
        (Filesystem, "has_unflushed_data", _never, 256, "before their content is durable"),
        (Filesystem, "mark_in_use", _mark_in_use_on_device_only, 32, "says that there is nothing to replay"),
    ],
    ids=["checkpoint without flush", "unordered data", "mark forgotten"],
)
def test_a_wrong_order_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    fault: object,
    log_kib: int,
    words: str,
) -> None:
    monkeypatch.setattr(journal, "_LOG_BYTES", log_kib << 10)
    monkeypatch.setattr(owner, name, fault, raising=False)
    assert any(words in problem for problem in problems(tmp_path, "no-extents-1k", "1", operations=60))
