"""A home that Docker left: opened, read and used by a user without privileges, and still what Docker reads."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from cowfs.devices import opening
from cowfs.errors import HomeError
from cowfs.pool import load_backend
from cowfs.testing.judges import require_clean_pool
from tests.conftest import Account
from tests.docker_home import BASE_UUID, DEVICE_IDS, LAYER_3, unpack


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return unpack(tmp_path)


def test_it_lists_and_activates_every_device(home: Path) -> None:
    before = {path.name: path.read_bytes() for path in (home / "metadata").iterdir()}
    with opening.open_home(home, load_backend("emulated")) as devices:
        assert {record.name: record.device_id for record in devices.records()} == DEVICE_IDS
        assert {record.size_bytes for record in devices.records()} == {1 << 30}
        assert {record.parent for record in devices.records()} == {None}
        for name in DEVICE_IDS:
            thin = devices.active.activate(name)
            assert thin.pread(1024 + 56, 2) == b"\x53\xef"  # ext4's magic
            devices.active.deactivate(name)
        assert [devices.reports.inspect(name).mapped_bytes >> 16 for name in DEVICE_IDS] == [783, 815, 816, 817]
        status = devices.reports.status()
        assert (status.base_uuid, devices.base.filesystem_name, status.transaction_id) == (BASE_UUID, "ext4", 12)
        assert (status.orphan_thin_ids, status.problems) == ([], [])
        require_clean_pool(devices.pool)
    after = {path.name: path.read_bytes() for path in (home / "metadata").iterdir()}
    assert after == before


def test_layers_are_snapshotted_written_and_removed(home: Path) -> None:
    with opening.open_home(home, load_backend("emulated")) as devices:
        made = devices.create("mine", parent=LAYER_3)
        assert made.device_id == max(DEVICE_IDS.values()) + 1
        devices.create("empty")
        thin, origin = devices.active.activate("mine"), devices.active.activate(LAYER_3)
        content = origin.pread(1 << 20, 1 << 16)
        thin.pwrite(1 << 20, b"x" * (1 << 16))
        thin.flush()
        assert origin.pread(1 << 20, 1 << 16) == content
        assert devices.reports.inspect("mine").exclusive_bytes == 1 << 16
        require_clean_pool(devices.pool)
    with opening.open_home(home, load_backend("emulated")) as devices:
        assert devices.active.activate("mine").pread(1 << 20, 4) == b"xxxx"
        devices.active.deactivate("mine")
        devices.remove("mine")
        devices.remove("empty")
        assert {record.name: record.device_id for record in devices.records()} == DEVICE_IDS
        require_clean_pool(devices.pool)
    keys = {name: list(json.loads((home / "metadata" / name).read_bytes())) for name in os.listdir(home / "metadata")}
    assert keys.pop("deviceset-metadata") == ["next_device_id", "BaseDeviceUUID", "BaseDeviceFilesystem"]
    assert keys.pop("transaction-metadata") == ["open_transaction_id", "device_hash", "device_id"]
    assert all(found == ["device_id", "size", "transaction_id", "initialized", "deleted"] for found in keys.values())


SESSION = f"""
import sys
from cowfs.devices import opening
from cowfs.pool import load_backend
with opening.open_home(sys.argv[1], load_backend("emulated")) as devices:
    devices.create("mine", parent="{LAYER_3}")
    for record in devices.records():
        devices.active.activate(record.name).pread(0, 4096)
    print(*[record.name for record in devices.records()])
"""


def test_a_user_without_privileges_can_do_all_of_that(ordinary_user: Account) -> None:
    home = unpack(ordinary_user.directory)
    for path in [home.parent, *home.parent.rglob("*")]:
        os.chown(path, ordinary_user.uid, ordinary_user.gid)
    result = ordinary_user.run([sys.executable, "-c", SESSION, home])
    assert result.stdout.split() == sorted([*DEVICE_IDS, "mine"])


def test_what_may_not_be_read_is_named(ordinary_user: Account) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make a home that another user may not read; run: sudo make test")
    home = unpack(ordinary_user.directory)
    (home / "metadata/base").chmod(0o600)
    os.chown(home, ordinary_user.uid, ordinary_user.gid)
    result = ordinary_user.run([sys.executable, "-c", SESSION, home], check=False)
    assert result.returncode != 0
    assert "Permission denied" in result.stderr.splitlines()[-1]
    home.chmod(0o000)
    os.chown(home, 0, 0)
    result = ordinary_user.run([sys.executable, "-c", SESSION, home], check=False)
    assert result.stderr.splitlines()[-1].endswith(f"cannot read the home {home}: Permission denied")


def test_a_read_only_copy_is_not_touched(home: Path) -> None:
    def state() -> dict[str, Any]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in home.rglob("*")}

    shutil.rmtree(home / "mnt")
    before = state()
    with opening.open_home(home, load_backend("emulated"), opening.OpenOptions(read_only=True)) as devices:
        assert len(devices.records()) == 4
        thin = devices.active.activate(LAYER_3)
        assert thin.pread(1024 + 56, 2) == b"\x53\xef"
        with pytest.raises(HomeError, match="open read-only"):
            devices.create("mine")
        assert devices.reports.inspect(LAYER_3).mapped_bytes == 817 << 16
    after = state()
    assert {path: after[path] for path in before} == before
