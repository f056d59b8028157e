"""Random operations on both backends side by side, and that the comparison notices planted bugs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cowfs.pool import Pool, load_backend
from cowfs.testing.differential import SideBySide
from cowfs.testing.generator import Generator
from cowfs.testing.script import Geometry, Player
from cowfs.testing.verify import Summary, verify
from cowfs.uml import UmlKernel
from tests.conftest import session_seed
from tests.kit.guests import STEP_SECONDS, run_in_guest
from tests.uml.planted import BUGS, MOST_SEEDS, BuggyBackend, no_bug

IS_LONG = "COWFS_TEST_LONG" in os.environ
SEEDS = 10
STEPS = 200
FIRST_SEED = session_seed() * 1000
EXPECTED = {
    *("create_thin", "create_snap", "delete", "write", "discard", "suspend", "suspend_pool", "resize"),
    *("set_transaction_id", "reserve_metadata_snap", "release_metadata_snap", "exhaust", "exhaust_metadata", "reopen"),
    *("grow_data", "grow_metadata", "events", "status", "thin_status", "extents", "contents", "delete EBUSY"),
    *("create_thin EEXIST", "create_snap ENODATA", "set_transaction_id EINVAL", "write ENOSPC", "write EIO"),
}
EMULATED = load_backend("emulated")


def test_no_difference_to_the_kernel(uml_kernel: UmlKernel) -> None:
    """All 200 of them: python -m cowfs.testing.verify --count 200"""
    summary = Summary()
    environment = dict(os.environ)
    first = session_seed() * 10_000
    for result in verify(
        first,
        SEEDS,
        steps=STEPS,
        kernel=uml_kernel,
        environment=environment,
        guests=2,
        silence_seconds=STEP_SECONDS,
    ):
        summary.add(result)
    again = f"python -m cowfs.testing.verify --seed {first} --count {SEEDS} --steps {STEPS}"
    print(f"repeat with: {again}\n{summary.format()}")
    assert summary.difference is None
    assert summary.seeds == SEEDS
    assert summary.judges == ["recount", "thin_check"]
    assert summary.operations.keys() >= EXPECTED


@pytest.mark.parametrize("seed", range(20))
def test_generated_scripts_are_scripts(seed: int) -> None:
    generator = Generator(seed)
    assert Geometry.parse(generator.geometry.format()) == generator.geometry
    script = generator.script(200)
    assert len(script) == 201
    for line in script:
        verb, *words = line.split()
        assert hasattr(Player, f"_do_{verb}") or hasattr(Pool, verb), line
        assert all(word.isdigit() for word in words), line
    assert generator.script(50) != Generator(seed).script(50)
    assert Generator(seed).script(50) == Generator(seed).script(50)


# --- planted bugs


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found_beside_the_honest_emulation(name: str, fast_directory: Path) -> None:
    """And the script that shows it shows it again. From three first seeds with COWFS_TEST_LONG=1."""
    side_by_side = beside_the_honest(name, fast_directory)
    for first in range(FIRST_SEED, FIRST_SEED + (3 if IS_LONG else 1) * MOST_SEEDS, MOST_SEEDS):
        found = side_by_side.first_difference(range(first, first + MOST_SEEDS), STEPS)
        assert found is not None
        print(f"{name}: seed {found.seed}, after {len(found.script)} operations")
        again = side_by_side.play(found.seed, found.geometry, found.script)
        assert again is not None
        assert again.outcomes == found.outcomes


@pytest.mark.parametrize(
    "name", ["nothing_counts_as_shared", "a_full_pool_is_read_only", "discard_leaves_its_last_block"]
)
def test_a_difference_is_shrunk_until_every_operation_is_needed(name: str, fast_directory: Path) -> None:
    side_by_side = beside_the_honest(name, fast_directory)
    found = side_by_side.first_difference(range(FIRST_SEED, FIRST_SEED + MOST_SEEDS), STEPS)
    assert found is not None
    smaller = side_by_side.shrink(found)
    print(smaller.format())
    script = smaller.script
    assert side_by_side.play(smaller.seed, smaller.geometry, script) == smaller
    for left_out in range(len(script) - 1):
        shorter = script[:left_out] + script[left_out + 1 :]
        assert side_by_side.play(smaller.seed, smaller.geometry, shorter) is None


def beside_the_honest(name: str, directory: Path) -> SideBySide:
    backends = {"emulated": EMULATED, "buggy": BuggyBackend(BUGS[name])}
    return SideBySide(backends, directory, thin_check=False)


def test_planted_bugs_are_found_beside_the_kernel(uml_kernel: UmlKernel) -> None:
    """One in four of them, since a guest takes seconds for each seed; all with COWFS_TEST_LONG=1."""
    every = 1 if IS_LONG else 4
    words = ["tests.uml.planted", FIRST_SEED, STEPS, every]
    result = run_in_guest(uml_kernel, *words, env=dict(os.environ), memory_bytes=1 << 30)
    print(result.stdout)
    assert result.returncode == 0, result.stderr
    found = dict(map(json.loads, result.stdout.splitlines()))
    assert list(found) == list(BUGS)[::every]
    assert None not in found.values()


def test_the_emulated_backend_does_not_differ_from_itself(fast_directory: Path) -> None:
    side_by_side = SideBySide({"emulated": EMULATED, "buggy": BuggyBackend(no_bug)}, fast_directory)
    assert side_by_side.first_difference(range(4), STEPS) is None
