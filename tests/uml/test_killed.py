"""kill -9 of the guest in the middle of operations, at random moments; both backends go on with what is there."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from cowfs.pool import load_backend
from cowfs.testing.judges import require_clean_file
from cowfs.testing.script import Geometry, make_files, pattern, play_directory
from cowfs.uml import UmlKernel, run
from tests.conftest import REPOSITORY, session_seed
from tests.kit.guests import STEP_SECONDS, run_in_guest

KILLS = int(os.environ.get("COWFS_TEST_KILLS", "3"))
GEOMETRY = Geometry(data=1000, metadata=512, thin=64 * 128)
BLOCK_BYTES = 65536
THIN_BLOCKS = 64
STEPS = 400
# What is answered only when something before it is on the disk.
DURABLE = ("flush", "create_thin", "create_snap", "delete")
MOST_AHEAD = 60  # operations that the guest may have carried out unheard
EMULATED = load_backend("emulated")
PROGRAM = """
import sys
from pathlib import Path
from cowfs.pool import load_backend
from cowfs.testing.script import Geometry, Player

directory = Path(sys.argv[1])
head, *lines = (directory / "script").read_text().splitlines()
player = Player(load_backend("dmthin"), directory, Geometry.parse(head), name=f"{directory.name}-pool")
for line in lines:
    print(player.play(line), flush=True)
"""
AFTERWARDS = [
    *("contents", "thin_ids", "status", "create_thin 90", "write 90 1000 300000 1", "create_snap 91 90"),
    *("write 90 0 65536 2", "write 91 131072 65536 3", "discard 90 196608 65536", "flush 90", "grow_data 50"),
    *("exhaust 91 4", "status", "reopen", "contents", "thin_ids", "status"),
]

# By thin and block, which block of which write is there.
State = dict[int, dict[int, tuple[int, int]]]


class KilledError(Exception):
    """Raised where the guest's output is taken: the guest is killed on the spot."""


def random_script(rng: random.Random) -> list[str]:
    """Operations that succeed."""
    lines = ["create_thin 0"]
    state: State = {}
    follow(state, lines[0])
    while len(lines) < STEPS:
        thin_id = rng.choice(list(state))
        first, length = rng.randrange(THIN_BLOCKS - 3), rng.randint(1, 3)
        line = f"{thin_id} {first * BLOCK_BYTES} {length * BLOCK_BYTES}"
        verb = rng.choices(["write", "discard", "flush", "create_snap", "delete"], [60, 10, 15, 8, 8])[0]
        if verb == "write":
            line = f"write {line} {len(lines)}"
        elif verb == "discard":
            line = f"discard {line}"
        elif verb == "flush":
            line = f"flush {thin_id}"
        elif verb == "create_snap" and len(state) < 8:
            line = f"create_snap {next(n for n in range(20) if n not in state)} {thin_id}"
        elif verb == "delete" and len(state) > 3:
            lines.append(f"deactivate {thin_id}")
            line = f"delete {thin_id}"
        else:
            continue
        lines.append(line)
        follow(state, line)
    return lines


def follow(state: State, line: str) -> None:
    verb, *words = line.split()
    thin_id, *numbers = map(int, words)
    if verb == "create_thin":
        state[thin_id] = {}
    elif verb == "create_snap":
        state[thin_id] = dict(state[numbers[0]])
    elif verb == "delete":
        del state[thin_id]
    elif verb in ("write", "discard"):
        for index in range(numbers[1] // BLOCK_BYTES):
            block = numbers[0] // BLOCK_BYTES + index
            if verb == "write":
                state[thin_id][block] = (numbers[2], index)
            else:
                state[thin_id].pop(block, None)


def block_of(written: tuple[int, int] | None) -> bytes:
    if written is None:
        return bytes(BLOCK_BYTES)
    seed, index = written
    return bytes(pattern(seed, (index + 1) * BLOCK_BYTES)[index * BLOCK_BYTES :])


def require_flushed(directory: Path, script: list[str], done: int) -> None:
    """What was flushed is there, or what was written after it."""
    state: State = {}
    # Of the thins that must be there, what each block may hold: as flushed, or written since.
    possible: dict[int, dict[int, set[tuple[int, int] | None]]] = {}
    for number, line in enumerate(script[: done + MOST_AHEAD]):
        follow(state, line)
        verb, named = line.split()[0], int(line.split()[1])
        if verb == "delete" or (verb == "create_snap" and number >= done):
            possible.pop(named, None)
        if verb in DURABLE and number < done:
            for thin_id in [named] if verb == "flush" else state:  # a message commits all thins
                possible[thin_id] = defaultdict(set)
        for thin_id, blocks in possible.items():
            for block in range(THIN_BLOCKS):
                blocks[block].add(state[thin_id].get(block))
    pool = EMULATED.open_pool("killed", GEOMETRY.table(directory))
    try:
        assert set(pool.thin_ids()) >= possible.keys()
        for thin_id, blocks in possible.items():
            thin = pool.activate(f"thin-{thin_id}", thin_id, GEOMETRY.thin)
            for block in range(THIN_BLOCKS):
                found = thin.pread(block * BLOCK_BYTES, BLOCK_BYTES)
                assert any(found == block_of(written) for written in blocks[block]), (thin_id, block, blocks[block])
            thin.close()
    finally:
        pool.close()


def play_until_killed(kernel: UmlKernel, directory: Path, script: list[str], moment: int) -> int:
    """How many operations were heard of when the guest was killed."""
    (directory / "script").write_text("\n".join([GEOMETRY.format(), *script]) + "\n")
    seen = bytearray()

    def take(data: bytes) -> None:
        seen.extend(data)
        if seen.count(b"\n") >= moment:
            raise KilledError

    with pytest.raises(KilledError):
        run(
            [sys.executable, "-c", PROGRAM, str(directory)],
            kernel=kernel,
            cwd=REPOSITORY,
            silence_seconds=STEP_SECONDS,
            stdout=take,
        )
    outcomes = seen.decode().splitlines()
    assert set(outcomes) == {"ok"}, outcomes
    return len(outcomes)


def test_a_killed_kernel_loses_nothing_flushed(uml_kernel: UmlKernel, fast_directory: Path) -> None:
    pools = []
    for seed in range(session_seed() * 1000, session_seed() * 1000 + KILLS):
        rng = random.Random(seed)
        directory = fast_directory / f"killed-{seed}"
        make_files(directory, GEOMETRY)
        script = random_script(rng)
        done = play_until_killed(uml_kernel, directory, script, rng.randrange(30, STEPS - 2 * MOST_AHEAD))
        print(f"seed {seed}: killed after {done} operations, the next was '{script[done]}'")
        require_clean_file(directory / "metadata")
        require_flushed(directory, script, done)
        pools.append(directory)
    # The kernel continues with the pool as it is, as the emulated backend does.
    for directory in pools:
        (directory / "script").write_text("\n".join([GEOMETRY.format(), *AFTERWARDS]) + "\n")
        shutil.copytree(directory, directory.with_suffix(".emulated"))
    played = run_in_guest(uml_kernel, "cowfs.testing.script", "--backend", "dmthin", *pools)
    assert played.returncode == 0, played.stderr
    for directory in pools:
        copy = directory.with_suffix(".emulated")
        assert play_directory(EMULATED, copy) == (directory / "outcomes").read_text().splitlines()
        require_clean_file(directory / "metadata")
        require_clean_file(copy / "metadata")
