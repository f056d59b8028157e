"""What the crash explorer shows of a state is what the kernel's ext4 shows of a plain disk with the same writes."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import cowfs
from cowfs.crashes.disk import DiskHistory
from cowfs.crashes.explorer import Explorer
from cowfs.crashes.history import Loss, State
from cowfs.home.requests.recordings import Write
from cowfs.uml import UmlKernel
from tests.conftest import session_seed
from tests.crashes.conftest import OPTIONS
from tests.kit.guests import run_in_guest
from tests.uml.guest_journals import tree

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

STATES = 24
Tree = dict[str, str]


def work(directory: Path, rng: random.Random) -> None:
    """Operations of all kinds, of which some are synced."""
    for number in range(30):
        folder = directory / f"folder-{rng.randrange(3)}"
        folder.mkdir(exist_ok=True)
        path = folder / f"file-{rng.randrange(6)}"
        with path.open(rng.choice(["wb", "ab"])) as file:
            file.write(rng.randbytes(rng.choice([10, 3000, 20_000])))
            file.flush()
            if number % 4 == 0:
                os.fsync(file.fileno())
        if number % 5 == 1:
            path.rename(folder / f"moved-{number}")
        elif number % 7 == 2:
            path.unlink()
        elif number % 7 == 3:
            os.symlink("target", folder / f"link-{number}-{rng.randrange(1 << 20)}")


def shown(explorer: Explorer, states: Sequence[State]) -> list[Tree | str]:
    """The tree of each state as the explorer shows it, or why it cannot."""
    found: list[Tree | str] = []
    for one in states:
        try:
            with explorer.shown(explorer.crash_state(one)) as path:
                found.append(tree(path))
        except OSError as error:
            found.append(str(error))
    explorer._maker.close() if explorer._maker else None
    explorer._maker = None
    return found


def save(directory: Path, explorer: Explorer, states: Sequence[State]) -> None:
    """What the guest needs, from the recording alone."""
    recording, history = explorer.recording, explorer.history
    assert recording is not None
    explorer.home.export_image(f"{explorer.device}.before", directory / "base")
    entries, written = [], bytearray()
    for entry in recording.entries:
        entries.append((entry.operation, entry.offset, entry.length, -1 if entry.data is None else len(written)))
        written += entry.data or b""
    numbers = [number for number, entry in enumerate(recording.entries) if entry.length]
    told = []
    for state in states:
        lost = {numbers[loss.item]: list(loss.sectors) for loss in state.lost}
        events = state.position - history.marks_before(state.position)
        told.append((events, lost))
    (directory / "written").write_bytes(written)
    (directory / "states.json").write_text(json.dumps({"entries": entries, "states": told}))


def test_the_explorer_shows_what_the_kernel_shows(
    uml_kernel: UmlKernel, monkeypatch: pytest.MonkeyPatch, fast_directory: Path, needs_fuse: None
) -> None:
    rng = random.Random(session_seed())
    with (
        cowfs.open_home(fast_directory / "home", create=True, options=OPTIONS, durable=False) as home,
        home.mount() as mount_point,
        Explorer.started(home, mount_point, seed=session_seed()) as explorer,
    ):
        work(explorer.path, rng)
        with explorer.record() as path:
            work(path, rng)
            explorer.mark("in between")
            work(path, rng)
        states = explorer.plan(STATES)
        save(fast_directory, explorer, states)
        right = shown(explorer, states)
        with monkeypatch.context() as mistake:
            mistake.setattr(DiskHistory, "writes", _forgetting(DiskHistory.writes))
            forgetting = shown(explorer, states)
        with monkeypatch.context() as mistake:
            mistake.setattr(DiskHistory, "durable_items", lambda self, position: self.issued_until(position))
            early = shown(explorer, states)
    done = run_in_guest(uml_kernel, "tests.uml.guest_crash_states", fast_directory)
    assert done.returncode == 0, done.stderr
    kernel = [json.loads(line)["tree"] for line in done.stdout.splitlines()]
    assert len(kernel) == len(states) == STATES
    assert len({json.dumps(one) for one in kernel}) > STATES // 4  # they are not all the same
    assert right == kernel
    assert forgetting != kernel
    assert early != kernel


def _forgetting(writes: object) -> object:
    """The explorer with a mistake: every fifth write is forgotten."""
    assert callable(writes)

    def few(self: DiskHistory, begin: int, end: int, lost: Sequence[Loss] = ()) -> Iterator[Write]:
        forgotten = [Loss(item) for item in range(begin, end) if item % 5 == 4]
        yield from writes(self, begin, end, [*lost, *forgotten])

    return few
