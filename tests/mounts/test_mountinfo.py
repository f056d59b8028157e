from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.mounts.mountinfo import decode_source, encode_source, mount_at, mounts, parse_mountinfo

LINES = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
36 22 0:53 / /mnt/a\040b\134c\011 rw,nosuid shared:7 master:2 - fuse.cowfs cowfs:/home/u/H:base rw,user_id=1000
37 22 0:54 /sub /mnt/x rw - fuse.other  rw
"""


def test_fields() -> None:
    root, ours, other = parse_mountinfo(LINES)
    assert (root.target, root.device, root.fstype, root.is_cowfs, root.owner_uid) == ("/", "254:0", "ext4", False, None)
    assert ours.target == "/mnt/a b\\c\t"
    assert (ours.source, ours.device, ours.owner_uid) == ("cowfs:/home/u/H:base", "0:53", 1000)
    assert ours.is_cowfs
    assert "nosuid" in ours.options
    assert ours.super_options == {"rw", "user_id=1000"}
    assert (other.root, other.source) == ("/sub", "")


@pytest.mark.parametrize("line", [b"1 2 3", b"a b 0:1 / / rw - ext4 x rw", b"36 22 0:53 / /mnt rw shared:7"])
def test_malformed_lines_are_named(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a mount line"):
        parse_mountinfo(line)


def test_this_machine() -> None:
    assert any(mount.target == "/" for mount in mounts())
    assert [mount.fstype for mount in mounts() if mount == mount_at("/proc")] == ["proc"]
    assert mount_at("/proc/self") is None


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1)


@given(st.lists(NAMES.filter(lambda name: name not in {".", ".."}), max_size=4), NAMES)
def test_sources_come_back_and_are_plain(parts: list[str], name: str) -> None:
    home = "/no-such-directory/" + "/".join(parts)
    source = encode_source(home, name)
    assert source.isascii()
    assert not set(source) & set(" ,\\#\n\t")
    assert decode_source(source) == (home.rstrip("/"), name)


@pytest.mark.parametrize("source", ["", "/dev/sda1", "cowfs", "cowfs:a", "cowfs:a:b:c", "sshfs:a:b"])
def test_foreign_sources(source: str) -> None:
    assert decode_source(source) is None
