"""Pools go back and forth between the emulated backend and the kernel, and neither finds a difference.

One boot serves all histories, as many each way (COWFS_TEST_HISTORIES). A history is played on pool files by one
backend, then goes on, on the other; beside it the emulated backend plays the whole of it alone. Outcomes are the same
line by line, the metadata is clean for every judge, and what the files hold at the end is read by the emulated backend.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cowfs.blockdev import FileDevice
from cowfs.pool import load_backend
from cowfs.testing.generator import Generator
from cowfs.testing.judges import require_clean_file
from cowfs.testing.script import Geometry, Player, make_files, play_directory
from cowfs.thinmeta import Metadata
from cowfs.thinmeta.xml import dump
from cowfs.uml import UmlKernel
from tests.conftest import REPOSITORY, session_seed
from tests.kit.guests import run_in_guest

HISTORIES = int(os.environ.get("COWFS_TEST_HISTORIES", "50"))
STEPS = 40
LARGE_HISTORIES = 1  # each way
LARGE_BLOCKS = 70_000
LARGE = Geometry(data=LARGE_BLOCKS, metadata=2048, thin=LARGE_BLOCKS * 128)
FEATURES = {"shared subtrees", "counts over three", "three levels", "several bitmaps", "a held root"}
SEEDS = range(session_seed() * 1000, session_seed() * 1000 + HISTORIES)
LARGE_SEEDS = range(session_seed() * 1000, session_seed() * 1000 + LARGE_HISTORIES)
ENDING = ["resume_pool", "contents", "status", "thin_ids"]
EMULATED = load_backend("emulated")


@dataclass
class History:
    """Two scripts on one geometry. `mixed` is played by both backends in turn, `alone` by the emulated one."""

    name: str
    folder: Path
    geometry: Geometry
    scripts: tuple[list[str], list[str]]
    kernel_first: bool = False
    # How many nodes a tree of references takes after deletions is each writer's own choice; it shows in large pools.
    same_node_counts: bool = True

    @property
    def mixed(self) -> Path:
        return self.folder / f"{self.name}-mixed"

    @property
    def alone(self) -> Path:
        return self.folder / f"{self.name}-alone"

    def write_script(self, directory: Path, stage: int) -> None:
        (directory / "script").write_text("\n".join([self.geometry.format(), *self.scripts[stage]]) + "\n")

    def play_emulated(self, directory: Path, stage: int) -> list[str]:
        self.write_script(directory, stage)
        return play_directory(EMULATED, directory)


def random_history(seed: int, folder: Path, *, kernel_first: bool) -> History:
    generator = Generator(seed)
    geometry = replace(generator.geometry, commit_each=True)  # one plays in another second than the other
    name = f"{'kernel' if kernel_first else 'emulated'}-first-{seed}"
    scripts = (generator.script(STEPS) + ENDING, [*ENDING, *generator.script(STEPS), *ENDING])
    return History(name, folder, geometry, scripts, kernel_first)


def large_history(seed: int, folder: Path, *, kernel_first: bool) -> History:
    """Three-level trees, several bitmaps, counts over three, a held root: most of it mapped, little of it written."""
    rng = random.Random(seed)

    def place() -> int:
        return rng.randrange(LARGE_BLOCKS) * 65536

    writes = [f"write {rng.choice([0, 7])} {place()} {rng.choice([512, 65536])} {n}" for n in range(150)]
    reads = [f"read {rng.choice([0, 3, 7])} {place()} 65536" for _ in range(60)]
    discards = [f"discard 7 {place()} {rng.randint(1, 40) * 65536}" for _ in range(60)]
    snapshots = [f"create_snap {n} {rng.choice([0, n - 1])}" for n in range(1, 9)]
    figures = ["status", "thin_status 0", "thin_status 7", "thin_ids", "flush 0", "flush 7", "status"]
    # Four of the thins that share a leaf copy it, and so count each of its blocks once more.
    shared_place = rng.randrange(LARGE_BLOCKS // 2) * 65536
    copies = [f"write {thin_id} {shared_place} 512 {thin_id}" for thin_id in (0, 2, 4, 7)]
    first = [*snapshots, "grow_data 10000", *copies, *writes[:20], "reserve_metadata_snap", *figures]
    second = [*reads, *writes, *reads, "delete 5", *figures, *discards, *reads, "grow_metadata 512", *figures]
    name = f"large-{'kernel' if kernel_first else 'emulated'}-first-{seed}"
    scripts = (first, [*second, "extents 3", "reopen", *figures])
    return History(name, folder, LARGE, scripts, kernel_first, same_node_counts=False)


def make_large_files(directory: Path) -> None:
    """A pool with dense mappings, without writing their data."""
    make_files(directory, LARGE)
    device = FileDevice(directory / "metadata")
    metadata = Metadata.create(device, LARGE.block)
    metadata.resize_data(LARGE_BLOCKS)
    metadata.create_thin(0)
    mapping = metadata.open_thin(0)
    vblock = 0
    while vblock < LARGE_BLOCKS - 4000:
        dblock, length = metadata.allocate_data(LARGE_BLOCKS - 4000 - vblock)
        mapping.insert(vblock, dblock, length)
        vblock += length
    metadata.commit()
    metadata.close()
    device.close()


@pytest.fixture(scope="module")
def histories(fast_directory: Path, uml_kernel: UmlKernel) -> dict[str, History]:
    """Every history with the kernel's stage played."""
    ways = (False, True)
    found = [random_history(seed, fast_directory, kernel_first=way) for way in ways for seed in SEEDS]
    for history in found:
        make_files(history.mixed, history.geometry)
    large = [large_history(seed, fast_directory, kernel_first=way) for way in ways for seed in LARGE_SEEDS]
    for history in large:
        make_large_files(history.mixed)
    found += large
    handed_over: Counter[str] = Counter()
    for history in found:
        shutil.copytree(history.mixed, history.alone)
        if not history.kernel_first:
            history.play_emulated(history.mixed, 0)
            handed_over.update(features_of(history.mixed))
        history.write_script(history.mixed, 0 if history.kernel_first else 1)
    mixed = [history.mixed for history in found]
    done = run_in_guest(uml_kernel, "cowfs.testing.script", "--backend", "dmthin", *mixed)
    assert done.returncode == 0, done.stderr
    handed_back: Counter[str] = Counter()
    for history in found:
        handed_back.update(features_of(history.mixed))
    print(f"{len(SEEDS)} histories each way from seed {SEEDS[0]}, {len(LARGE_SEEDS)} large ones from {LARGE_SEEDS[0]}")
    print(f"pools handed to the kernel: {dict(handed_over)}; pools that it left: {dict(handed_back)}")
    assert handed_over.keys() == handed_back.keys() == FEATURES
    return {history.name: history for history in found}


def features_of(directory: Path) -> set[str]:
    """What is worth seeing in the metadata of a pool."""
    device = FileDevice(directory / "metadata", read_only=True)
    metadata = Metadata.open(device, read_only=True)
    try:
        roots = [metadata.open_thin(thin_id).root for thin_id in metadata.thin_ids()]
        found = {
            "shared subtrees": len(set(roots)) < len(roots),
            "counts over three": any(metadata._maps.data.count(block) > 3 for block in range(metadata.data_blocks)),
            "three levels": any(levels_of(metadata, root) >= 3 for root in roots),
            "several bitmaps": len(metadata._maps.data.entries) > 1,
            "a held root": metadata.held_root is not None,
        }
        return {name for name, is_there in found.items() if is_there}
    finally:
        metadata.close()
        device.close()


def levels_of(metadata: Metadata, root: int) -> int:
    levels, node = 1, metadata.subtrees._read(root)
    while not node.is_leaf:
        levels, node = levels + 1, metadata.subtrees._read(node.values[0])
    return levels


def dump_text(directory: Path) -> str:
    device = FileDevice(directory / "metadata", read_only=True)
    out = io.StringIO()
    try:
        dump(device, out)
    finally:
        device.close()
    return out.getvalue()


def figures_but_nodes(status: str) -> list[str]:
    words = status.split()
    return [words[0], *words[2:]]


def compare(history: History) -> None:
    """The kernel's outcomes are the emulated backend's, and both files say the same."""
    kernels_stage = 0 if history.kernel_first else 1
    kernels = (history.mixed / "outcomes").read_text().splitlines()
    require_clean_file(history.mixed / "metadata")
    stages = [history.play_emulated(history.alone, stage) for stage in range(kernels_stage + 1)]
    for line, ours, theirs in zip(history.scripts[kernels_stage], stages[-1], kernels, strict=True):
        exact = line != "status" or history.same_node_counts
        assert (line, theirs) == (line, ours) if exact else figures_but_nodes(theirs) == figures_but_nodes(ours)
    assert dump_text(history.mixed) == dump_text(history.alone)
    # And on with the emulated backend, on what the kernel left.
    rest = history.scripts[1] if history.kernel_first else ["thin_ids", "create_thin 100", "reopen", "thin_ids"]
    players = [Player(EMULATED, path, history.geometry) for path in (history.mixed, history.alone)]
    outcomes = [player.play_all(rest) for player in players]
    for player in players:
        player.close()
    assert outcomes[0] == outcomes[1]
    require_clean_file(history.mixed / "metadata")


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kernel_continues_with_our_pools(histories: dict[str, History], seed: int) -> None:
    compare(histories[f"emulated-first-{seed}"])


@pytest.mark.parametrize("seed", SEEDS)
def test_we_go_on_with_the_kernels_pools(histories: dict[str, History], seed: int) -> None:
    compare(histories[f"kernel-first-{seed}"])


@pytest.mark.parametrize("seed", LARGE_SEEDS)
@pytest.mark.parametrize("first", ["emulated", "kernel"])
def test_large_trees_go_both_ways(histories: dict[str, History], first: str, seed: int) -> None:
    compare(histories[f"large-{first}-first-{seed}"])


def test_the_shipped_program_says_what_it_played(tmp_path: Path) -> None:
    geometry = Geometry()
    directory = tmp_path / "pool"
    make_files(directory, geometry)
    (directory / "script").write_text(f"{geometry.format()}\ncreate_thin 1\ncreate_thin 1\nthin_ids\n")
    command = [sys.executable, "-m", "cowfs.testing.script", "--backend", "emulated", str(directory)]
    subprocess.run(command, check=True, timeout=60, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    assert (directory / "outcomes").read_text() == "ok\nE EEXIST\n1\n"
