"""The ledger of uses: who uses a device, since when, and the one message for a busy device."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from cowfs.devices.reports import DeviceUse, UseKind
from cowfs.devices.uses import DeviceUses, busy, require_idle
from cowfs.errors import DeviceBusy
from tests.devices.home_fakes import FakeBackend, make_home


@pytest.fixture
def uses() -> DeviceUses:
    return DeviceUses(map(float, itertools.count(1000)).__next__)


def test_uses_are_listed_with_their_begin_until_they_end(uses: DeviceUses) -> None:
    end = uses.begin("web", "tree", "/mnt")
    with uses.using("web", "reader"), uses.using("db", "disk"):
        assert uses.all() == [
            DeviceUse("db", "disk", None, 1002.0),
            DeviceUse("web", "tree", "/mnt", 1000.0),
            DeviceUse("web", "reader", None, 1001.0),
        ]
        assert uses.of("web", "reader") == [DeviceUse("web", "reader", None, 1001.0)]
    assert uses.of("web") == [DeviceUse("web", "tree", "/mnt", 1000.0)]
    end()
    end()
    assert uses.all() == []


def test_the_end_of_one_use_leaves_an_equal_one() -> None:
    uses = DeviceUses(lambda: 5.0)
    first, second = uses.begin("web", "layer", "/a"), uses.begin("web", "layer", "/a")
    first()
    first()
    assert len(uses.of("web")) == 1
    second()
    assert not uses.of("web")


@pytest.mark.parametrize(
    ("kind", "where", "how", "remedy"),
    [
        ("tree", "/mnt", "mounted at /mnt", "first run: cowfs umount /mnt"),
        ("raw", "/mnt", "mounted at /mnt", "first run: cowfs umount /mnt"),
        ("raw", "/mnt/a b", "mounted at /mnt/a b", "first run: cowfs umount '/mnt/a b'"),
        ("kernel", "/mnt", "mounted at /mnt", "first run: cowfs umount /mnt"),
        ("home", "/m/web", "in use at /m/web", "see by whom with: fuser -vm /m/web"),
        ("layer", "/m/web/rootfs", "mounted as a layer at /m/web/rootfs", "first run: cowfs layer put web"),
        ("reader", None, "being read as a layer", "try again when that is done"),
        ("disk", None, "in use as a disk", "close it first"),
    ],
)
def test_the_message_names_the_use_and_what_ends_it(kind: UseKind, where: str | None, how: str, remedy: str) -> None:
    with pytest.raises(DeviceBusy) as caught:
        require_idle("web", [DeviceUse("web", kind, where, None)], "removed")
    assert str(caught.value) == f"device 'web' is {how}, so it cannot be removed; {remedy}"


def test_of_several_uses_the_message_names_what_ends_the_others_too() -> None:
    uses = [DeviceUse("web", "home", "/m/web", 1.0), DeviceUse("web", "layer", "/m/web/rootfs", 2.0)]
    error = busy("web", uses, "resized", " (or copy it)")
    assert str(error).endswith("first run: cowfs layer put web (or copy it)")


def test_an_idle_device_passes() -> None:
    require_idle("web", [], "removed")


def test_a_device_set_names_the_use_of_a_busy_device(tmp_path: Path) -> None:
    with make_home(tmp_path / "home", FakeBackend(), clock=lambda: 7.0) as devices:
        devices.create("web")
        devices.active.activate("web")
        with devices.uses.using("web", "raw", "/mnt"), pytest.raises(DeviceBusy, match=r"mounted at /mnt, .* removed"):
            devices.remove("web")
        with pytest.raises(DeviceBusy, match="is in use, so it cannot be resized; unmount it first"):
            devices.resize("web", devices.record("web").size_bytes * 2)
        devices.active.deactivate("web")
        devices.remove("web")
