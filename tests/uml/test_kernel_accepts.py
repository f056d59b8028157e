"""Pools go back and forth between the emulated backend and the kernel, and nobody can tell.

One boot serves all tests. A history is played on pool files by one backend, then goes on, on the other; beside it the
emulated backend plays the whole of it alone. Outcomes are the same line by line, the metadata is clean for every judge,
and what the files hold at the end is read by the emulated backend.
"""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cowfs.blockdev import FileDevice
from cowfs.pool import load_backend
from cowfs.testing.generator import Generator
from cowfs.testing.judges import require_clean
from cowfs.testing.script import Geometry, Player, make_files, play_directory
from cowfs.thinmeta import Metadata
from cowfs.thinmeta.xml import dump
from cowfs.uml import UmlKernel, run
from tests.conftest import REPOSITORY, session_seed

HISTORIES = 25
STEPS = 100
BIG_BLOCKS = 70_000
BIG = Geometry(data=BIG_BLOCKS, metadata=2048, thin=BIG_BLOCKS * 128)
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


def big_history(folder: Path, rng: random.Random) -> History:
    """Three-level trees, several bitmaps, counts over three, a held root: most of it mapped, little of it written."""

    def place() -> int:
        return rng.randrange(BIG_BLOCKS) * 65536

    writes = [f"write {rng.choice([0, 7])} {place()} {rng.choice([512, 65536])} {n}" for n in range(150)]
    reads = [f"read {rng.choice([0, 3, 7])} {place()} 65536" for _ in range(60)]
    discards = [f"discard 7 {place()} {rng.randint(1, 40) * 65536}" for _ in range(60)]
    snapshots = [f"create_snap {n} {rng.choice([0, n - 1])}" for n in range(1, 9)]
    figures = ["status", "thin_status 0", "thin_status 7", "thin_ids", "flush 0", "flush 7", "status"]
    first = [*snapshots, "grow_data 10000", *writes[:20], "reserve_metadata_snap", *figures]
    second = [*reads, *writes, *reads, "delete 5", *figures, *discards, *reads, "grow_metadata 512", *figures]
    return History("big", folder, BIG, (first, [*second, "extents 3", "reopen", *figures]), same_node_counts=False)


def make_big_files(directory: Path) -> None:
    """A pool with 70 000 dense mappings, without writing their data."""
    make_files(directory, BIG)
    device = FileDevice(directory / "metadata")
    metadata = Metadata.create(device, BIG.block)
    metadata.resize_data(BIG_BLOCKS)
    metadata.create_thin(0)
    mapping = metadata.open_thin(0)
    vblock = 0
    while vblock < BIG_BLOCKS - 4000:
        dblock, length = metadata.allocate_data(BIG_BLOCKS - 4000 - vblock)
        mapping.insert(vblock, dblock, length)
        vblock += length
    metadata.commit()
    metadata.close()
    device.close()


@pytest.fixture(scope="module")
def histories(fast_directory: Path, uml_kernel: UmlKernel) -> dict[str, History]:
    """Every history with the kernel's stage played."""
    seeds = [session_seed() * 1000 + number for number in range(HISTORIES)]
    found = [random_history(seed, fast_directory, kernel_first=False) for seed in seeds]
    found += [random_history(seed, fast_directory, kernel_first=True) for seed in seeds]
    for history in found:
        make_files(history.mixed, history.geometry)
    big = big_history(fast_directory, random.Random(session_seed()))
    make_big_files(big.mixed)
    found.append(big)
    for history in found:
        shutil.copytree(history.mixed, history.alone)
        if not history.kernel_first:
            history.play_emulated(history.mixed, 0)
        history.write_script(history.mixed, 0 if history.kernel_first else 1)
    errors: list[bytes] = []
    status = run(
        [sys.executable, "-m", "cowfs.testing.script", "--backend", "dmthin", *(str(h.mixed) for h in found)],
        kernel=uml_kernel,
        cwd=REPOSITORY,
        timeout_seconds=280,
        stdout=lambda data: None,
        stderr=errors.append,
    )
    assert status == 0, b"".join(errors).decode()
    return {history.name: history for history in found}


def dump_text(directory: Path) -> str:
    device = FileDevice(directory / "metadata", read_only=True)
    out = io.StringIO()
    try:
        dump(device, out)
    finally:
        device.close()
    return out.getvalue()


def require_clean_file(directory: Path) -> None:
    device = FileDevice(directory / "metadata", read_only=True)
    try:
        require_clean(device)
    finally:
        device.close()


def figures_but_nodes(status: str) -> list[str]:
    words = status.split()
    return [words[0], *words[2:]]


def compare(history: History) -> None:
    """The kernel's outcomes are the emulated backend's, and both files say the same."""
    kernels_stage = 0 if history.kernel_first else 1
    kernels = (history.mixed / "outcomes").read_text().splitlines()
    require_clean_file(history.mixed)
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
    require_clean_file(history.mixed)


@pytest.mark.parametrize("number", range(HISTORIES))
def test_the_kernel_goes_on_with_our_pools(histories: dict[str, History], number: int) -> None:
    compare(histories[f"emulated-first-{session_seed() * 1000 + number}"])


@pytest.mark.parametrize("number", range(HISTORIES))
def test_we_go_on_with_the_kernels_pools(histories: dict[str, History], number: int) -> None:
    compare(histories[f"kernel-first-{session_seed() * 1000 + number}"])


def test_large_trees_go_both_ways(histories: dict[str, History]) -> None:
    compare(histories["big"])


class EnoughError(Exception):
    """Raised where the guest's output is taken: the guest is killed on the spot."""


def test_a_kernel_killed_in_the_middle_loses_nothing_flushed(uml_kernel: UmlKernel, tmp_path: Path) -> None:
    """kill -9 of the guest at a moment of its own choosing; the emulated backend opens what is there."""
    geometry = Geometry(data=400, metadata=256, thin=400 * 128)
    directory = tmp_path / "killed"
    make_files(directory, geometry)
    rounds = 60
    program = "import sys; from cowfs.testing.script import *; from pathlib import Path\n" + KILLED_PROGRAM
    seen: list[bytes] = []

    def take(data: bytes) -> None:
        seen.append(data)
        if b"".join(seen).count(b"\n") >= rounds // 2:
            raise EnoughError

    with pytest.raises(EnoughError):
        run(
            [sys.executable, "-c", program, str(directory), geometry.format(), str(rounds)],
            kernel=uml_kernel,
            cwd=REPOSITORY,
            timeout_seconds=120,
            stdout=take,
        )
    flushed = int(b"".join(seen).split(b"\n")[-2])
    assert flushed < rounds - 1
    require_clean_file(directory)
    pool = EMULATED.open_pool("killed", geometry.table(directory))
    thin = pool.activate("thin", 0, geometry.thin)
    for number in range(flushed + 1):
        content = thin.pread(number * 5 * 65536, 65536)
        assert content[:4096] == bytes([number + 1]) * 4096
    pool.close()
    require_clean_file(directory)


KILLED_PROGRAM = """
directory, geometry, rounds = Path(sys.argv[1]), Geometry.parse(sys.argv[2]), int(sys.argv[3])
pool = load_backend("dmthin").open_pool("killed-pool", geometry.table(directory))
pool.create_thin(0)
thin = pool.activate("thin", 0, geometry.thin)
for number in range(rounds):
    thin.pwrite(number * 5 * 65536, bytes([number + 1]) * 65536)
    thin.flush()
    pool.create_snap(number + 1, 0)
    print(number, flush=True)
    thin.pwrite(number * 5 * 65536 + 4096, b"\\xff" * 4096)
"""


def test_the_shipped_program_says_what_it_played(tmp_path: Path) -> None:
    geometry = Geometry()
    directory = tmp_path / "pool"
    make_files(directory, geometry)
    (directory / "script").write_text(f"{geometry.format()}\ncreate_thin 1\ncreate_thin 1\nthin_ids\n")
    command = [sys.executable, "-m", "cowfs.testing.script", "--backend", "emulated", str(directory)]
    subprocess.run(command, check=True, timeout=60, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    assert (directory / "outcomes").read_text() == "ok\nE EEXIST\n1\n"
