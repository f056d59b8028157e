"""What a mount of one device does around other content, on a view and a device that note it."""

from __future__ import annotations

import errno

import pyfuse3
import pytest
import trio
import trio.testing
from pyfuse3 import InodeT

from cowfs.errors import DeviceBusy, FilesystemError, HomeError
from cowfs.fuse import device_mount
from cowfs.fuse.device_mount import DeviceMount


class Noted:
    """A device, and its view, of which the kernel knows the root and inode 12."""

    def __init__(self) -> None:
        self.name = "web"
        self.events: list[str] = []
        self.content = 1
        self.failing = ""
        self.forgotten = trio.Event()
        self.is_used = False
        self.is_attached = True
        self.has_orphans = False

    def name_device(self, name: str) -> list[bytes]:
        self.events.append(f"rename {name}")
        return [b"web", name.encode()]

    def number(self) -> int:
        return self.content

    def open(self) -> str:
        if self.failing == "open":
            raise FilesystemError("no ext4", errno=errno.EUCLEAN)
        self.events.append("open")
        return f"content {self.content}"

    def close(self) -> None:
        self.events.append("close")
        if self.failing == "close":
            raise HomeError("the disk fails", errno=errno.EIO)

    def known(self) -> list[InodeT]:
        return [InodeT(12)]

    def names_at_root(self) -> list[bytes]:
        return [b"file %d" % self.content]

    def sync_clean(self) -> None:
        self.events.append("sync")

    def detach(self) -> None:
        self.events.append("detach")
        self.is_attached = False

    def attach(self, content: str) -> None:
        self.events.append(f"attach {content}")
        self.is_attached = True

    def replace(self, content: str) -> None:
        self.events.append(f"replace {content}")


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Noted:
    noted = Noted()

    def invalidate_entry(inode: int, name: bytes) -> None:
        noted.events.append(f"drop {name.decode()} of {inode}")

    monkeypatch.setattr(pyfuse3, "invalidate_entry", invalidate_entry)
    monkeypatch.setattr(device_mount, "drop_caches", lambda inodes: noted.events.append(f"drop {list(inodes)}"))
    return noted


async def test_other_content_is_shown_and_what_the_kernel_had_is_dropped(noted: Noted) -> None:
    mount = DeviceMount(noted, noted, "/mnt")
    await mount.give_up(force=False)
    assert noted.events == ["sync", "detach", "close"]
    noted.content = 2
    noted.events.clear()
    await mount.take_up()
    assert noted.events[:2] == ["open", "replace content 2"]
    assert sorted(noted.events[2:4]) == ["drop file 1 of 1", "drop file 2 of 1"]
    assert noted.events[4:] == ["drop [1, 12]"]


async def test_the_same_content_is_shown_as_before(noted: Noted) -> None:
    mount = DeviceMount(noted, noted, "/mnt")
    await mount.give_up(force=True)
    await mount.take_up()
    assert noted.events == ["sync", "detach", "close", "open", "attach content 1"]


async def test_a_device_that_cannot_be_closed_is_open_again(noted: Noted) -> None:
    noted.failing = "close"
    with pytest.raises(HomeError, match="the disk fails"):
        await DeviceMount(noted, noted, "/mnt").give_up(force=False)
    assert noted.events == ["sync", "detach", "close", "open", "attach content 1"]


async def test_content_that_cannot_be_shown_is_named(noted: Noted) -> None:
    mount = DeviceMount(noted, noted, "/mnt")
    await mount.give_up(force=False)
    noted.content, noted.failing = 2, "open"
    with pytest.raises(FilesystemError, match="'web' is rolled back, and its mount at /mnt can show nothing: no ext4"):
        await mount.take_up()
    noted.failing = ""
    await mount.give_up(force=False)
    await mount.take_up()  # what is known is still of the content that was shown last
    assert "replace content 2" in noted.events


async def test_a_device_with_another_name_is_shown_as_before(noted: Noted) -> None:
    mount = DeviceMount(noted, noted, "/mnt")
    await mount.put_aside()
    assert noted.events == ["sync", "detach", "close"]
    noted.events.clear()
    await mount.take_again("shop")
    assert noted.events == ["open", "attach content 1", "rename shop", "drop web of 1", "drop shop of 1"]
    assert mount.device_name == noted.name == "shop"


async def test_a_device_that_was_not_renamed_is_shown_as_before(noted: Noted) -> None:
    mount = DeviceMount(noted, noted, "/mnt")
    await mount.put_aside()
    await mount.take_again("web")
    assert noted.events == ["sync", "detach", "close", "open", "attach content 1"]


async def test_a_device_with_a_deleted_file_that_is_open_is_not_put_aside(
    noted: Noted, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    noted.has_orphans = True
    with pytest.raises(DeviceBusy, match="a file of device 'web' that has no name any more is open"):
        await DeviceMount(noted, noted, "/mnt").put_aside()
    assert noted.events == []
