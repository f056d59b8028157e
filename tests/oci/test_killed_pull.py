"""A pull that is killed at many moments leaves whole layers or nothing, and the next one goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cowfs
from tests.oci.conftest import Puller, make_home, names_in, require_sound
from tests.oci.layer_archives import layer_archive
from tests.oci.small_registry import SmallRegistry, digest_of

SEED = int(os.environ.get("COWFS_TEST_SEED", "1"))
KILLS = int(os.environ.get("COWFS_TEST_KILLS", "6"))
LAYERS = [layer_archive({f"dir{number}/file{n}": os.urandom(3000) for n in range(60)}) for number in range(4)]


def test_a_pull_that_is_killed(tmp_path: Path, puller: Puller, registry: SmallRegistry) -> None:
    registry.add_image("1", LAYERS)
    choose = random.Random(SEED)
    home = make_home(tmp_path / "home")
    reference = f"{registry.host}/web:1"
    command = [sys.executable, "-m", "cowfs", "--home", str(home), "layer", "pull", reference, "--name", "web"]
    whole = _duration(command, home)
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(choose.uniform(0.2, 1) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _require_whole(home)
        if choose.random() < 0.5:
            _empty(home)
    pulled = puller.pull(home, reference)
    assert [layer.diff_id for layer in pulled.layers] == [digest_of(layer) for layer in LAYERS]
    _require_whole(home)


def _duration(command: list[str], home: Path) -> float:
    begin = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    elapsed = time.monotonic() - begin
    _empty(home)
    return elapsed


def _empty(home: Path) -> None:
    with cowfs.open_home(home) as opened:
        for layer in list(opened.layers.list()):
            opened.layers.remove(layer)


def _require_whole(home: Path) -> None:
    """Each layer that is there has all of its files, and the home nothing else."""
    require_sound(home)
    present = [layer for layer in names_in(home) if layer != "web"]
    with cowfs.open_home(home) as opened:
        parents = {row.name: row.parent for row in opened.devices()}
        for layer in present:
            depth = 0
            above: str | None = layer
            while above in present:
                above = parents[above]
                depth += 1
            names = {found.name for found in opened.list_files(layer)}
            assert {f"dir{number}" for number in range(depth)} <= {os.fsdecode(name) for name in names}
            files = list(opened.list_files(layer, f"dir{depth - 1}"))
            assert len(files) == 60
            assert all(found.size_bytes == 3000 for found in files)
        assert opened.status().orphan_thin_ids == []
