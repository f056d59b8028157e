"""Journals go both ways: the kernel replays ours, we and e2fsck replay the kernel's, and all find the same files."""

from __future__ import annotations

import hashlib
import json
import stat
from contextlib import closing
from pathlib import Path

import pytest

from cowfs.blockdev import FileDevice, MemoryDevice
from cowfs.ext4.journal import journal
from cowfs.ext4.journal.recovery import needs_recovery
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from cowfs.testing.blockdev import memory_device
from cowfs.uml import UmlKernel
from tests.conftest import session_seed
from tests.ext4.conftest import FEATURE_SETS, MIB
from tests.ext4.crash_world import CrashWorld, State, fsck, make_image, read_state
from tests.kit.guests import run_in_guest

CRASHES = 5  # of each set of features
KINDS = ["1k-blocks", "no-checksums"]


def as_seen(state: State) -> dict[str, str]:
    """A tree as the guest reports it."""

    def what(kind: int, content: bytes) -> str:
        if kind == stat.S_IFDIR:
            return "directory"
        if kind == stat.S_IFLNK:
            return f"link {content.decode()}"
        return f"file {hashlib.sha256(content).hexdigest()}"

    return {path.decode(): what(file.kind, file.content) for path, file in state.items()}


def read_tree(device: FileDevice | MemoryDevice, *, read_only: bool = False) -> dict[str, str]:
    with closing(Volume.open(device, read_only=read_only)) as volume:
        return as_seen(read_state(volume))


def test_the_kernel_and_we_replay_each_others_journals(
    uml_kernel: UmlKernel, monkeypatch: pytest.MonkeyPatch, fast_directory: Path
) -> None:
    monkeypatch.setattr(journal, "_LOG_BYTES", 128 << 10)
    fast = fast_directory
    expected = {}
    for kind in KINDS:
        options = FEATURE_SETS[kind]
        size, blocks = (4 * MIB, []) if "1024" in options else (16 * MIB, ["-b", "4096"])
        world = CrashWorld(make_image(fast / "base", [*blocks, *options], size), f"{session_seed()} {kind}")
        world.run(150)
        for what, _, image in world.crashes(every=len(world.journal.entries) // CRASHES):
            if not needs_recovery(memory_device(image)):
                continue
            name = f"ours-{kind}-{what.replace(' ', '-')}"
            (fast / name).write_bytes(image)
            expected[name] = read_tree(memory_device(image), read_only=True)
    assert len(expected) > CRASHES
    make_image(fast / "theirs", ["-b", "4096"], 32 * MIB)
    done = run_in_guest(uml_kernel, "tests.uml.guest_journals", fast, session_seed())
    assert done.returncode == 0, done.stderr
    seen = {line["name"]: line["tree"] for line in map(json.loads, done.stdout.splitlines())}
    for name, tree in expected.items():
        assert seen.pop(name) == tree, name
        assert tools.run("e2fsck", ["-fn", str(fast / name)])[0] == 0
    assert len(seen) == 4
    for name, tree in seen.items():
        image = (fast / name).read_bytes()
        device = memory_device(image)
        assert needs_recovery(device)
        assert read_tree(device, read_only=True) == tree, name
        assert read_tree(device) == tree, name
        assert fsck(device.pread(0, device.size_bytes), "-fn", fast)[0] == 0
        status, output, repaired = fsck(image, "-fy", fast)
        assert status in (0, 1), output
        assert read_tree(repaired) == tree
