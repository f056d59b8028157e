"""`cowfs snapshotter` as a process: what containerd asks for, and what is left after its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from cowfs.containerd.grpc import Code
from cowfs.containerd.messages import ACTIVE, COMMITTED, VIEW
from tests.containerd.grpc_client import CallFailed
from tests.containerd.server import BLOCK_BYTES, Server, names, path_of, refused

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

WRITER = """
import os, sys
fd = os.open(sys.argv[1] + "/file", os.O_CREAT | os.O_RDWR)
os.write(fd, b"before")
print("open", flush=True)
sys.stdin.readline()
os.pwrite(fd, b"after!", 0)
os.fsync(fd)
"""


def test_an_image_is_unpacked_run_and_removed(server: Server) -> None:
    account = server.account
    with server.start() as client:
        root = path_of(client.call("Prepare", key="default/1/extract 57db", labels={"containerd.io/gc.root": "now"}))
        account.run(["sh", "-ec", 'echo one > "$1/file"; chmod 711 "$1"', "sh", root])
        client.call("Commit", key="default/1/extract 57db", name="default/2/sha256:aa", labels={"a": "b"})
        base = client.call("Stat", key="default/2/sha256:aa").info
        assert (base.kind, base.parent, dict(base.labels)) == (COMMITTED, "", {"a": "b"})
        assert base.created_at == base.updated_at
        usage = client.call("Usage", key="default/2/sha256:aa")
        assert 0 < usage.size <= 16 * BLOCK_BYTES
        assert (usage.size % BLOCK_BYTES, usage.inodes) == (0, 1)

        view = path_of(client.call("View", key="v", parent="default/2/sha256:aa"), "ro")
        box = path_of(client.call("Prepare", key="box", parent="default/2/sha256:aa"))
        assert account.run(["cat", view / "file"]).stdout == "one\n"
        assert account.run(["stat", "-c", "%a", box]).stdout == "711\n"
        account.run(["sh", "-ec", 'echo two > "$1/file"; rm -f "$1/none"; echo new > "$1/new"', "sh", box])
        assert client.call("Usage", key="box").inodes == 2
        assert path_of(client.call("Mounts", key="box")) == box
        assert account.run(["cat", view / "file"]).stdout == "one\n"

        assert sorted(names(client)) == ["box", "default/2/sha256:aa", "v"]
        assert names(client, "kind==active") == ["box"]
        assert names(client, "kind==view", "labels.a==b") == ["default/2/sha256:aa", "v"]
        assert client.call("Stat", key="v").info.kind == VIEW
        assert client.call("Stat", key="box").info.kind == ACTIVE

        for key in ("box", "v", "default/2/sha256:aa"):
            client.call("Remove", key=key)
        client.call("Cleanup")
        assert names(client) == []
    assert server.stop() == 0, server.log()
    assert not server.socket.exists()
    assert not os.path.ismount(server.home / "mnt")
    assert [line.split()[0] for line in server.cowfs("list").splitlines()] == ["NAME", "base"]
    assert server.cowfs("pool", "check").startswith("clean")


def test_a_committed_snapshot_never_changes(server: Server) -> None:
    """Not through what was open or mounted before its commit."""
    with server.start() as client:
        root = path_of(client.call("Prepare", key="active"))
        process = server.account.start(
            ["python", "-c", WRITER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "open\n"
        client.call("Commit", key="active", name="committed")
        process.stdin.write("go on\n")
        process.stdin.close()
        assert process.wait(60) == 0
        view = path_of(client.call("View", key="view", parent="committed"), "ro")
        assert server.account.run(["cat", view / "file"]).stdout == "before"


def test_what_cannot_be_is_one_line_and_the_right_code(server: Server) -> None:
    with server.start() as client:
        client.call("Prepare", key="a")
        client.call("Prepare", key="b")
        client.call("Commit", key="a", name="base")
        client.call("View", key="view", parent="base")
        assert refused(client, "Prepare", key="b") is Code.ALREADY_EXISTS
        assert refused(client, "Prepare", key="c", parent="none") is Code.NOT_FOUND
        assert refused(client, "Prepare", key="c", parent="b") is Code.INVALID_ARGUMENT
        assert refused(client, "Prepare", key="") is Code.INVALID_ARGUMENT
        assert refused(client, "View", key="c", parent="view") is Code.INVALID_ARGUMENT
        assert refused(client, "Commit", key="b", name="base") is Code.ALREADY_EXISTS
        assert refused(client, "Commit", key="view", name="x") is Code.FAILED_PRECONDITION
        assert refused(client, "Commit", key="none", name="x") is Code.NOT_FOUND
        assert refused(client, "Mounts", key="base") is Code.FAILED_PRECONDITION
        assert refused(client, "Remove", key="base") is Code.FAILED_PRECONDITION
        assert refused(client, "Remove", key="none") is Code.NOT_FOUND
        assert refused(client, "Stat", key="a") is Code.NOT_FOUND
        assert refused(client, "List", filters=["kind=active"]) is Code.INVALID_ARGUMENT
        assert sorted(names(client)) == ["b", "base", "view"]


def test_labels_are_updated(server: Server) -> None:
    with server.start() as client:
        client.call("Prepare", key="a", labels={"x": "1", "y": "2"})

        def update(labels: dict[str, str], *paths: str, **fields: str) -> dict[str, str]:
            info = {"name": "a", "labels": labels, **fields}
            return dict(client.call("Update", info=info, update_mask={"paths": list(paths)}).info.labels)

        assert update({"x": "3"}, "labels.x") == {"x": "3", "y": "2"}
        assert update({}, "labels.x") == {"y": "2"}
        assert update({"z": "4"}, "labels") == {"z": "4"}
        assert update({"w": "5"}) == {"w": "5"}
        before = client.call("Stat", key="a").info
        with pytest.raises(CallFailed, match="cannot update the field parent"):
            update({}, "parent", parent="b")
        after = client.call("Stat", key="a").info
        assert after == before
        assert after.updated_at.ToNanoseconds() > after.created_at.ToNanoseconds()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_after_another_one(server: Server, number: signal.Signals) -> None:
    """Each snapshot that was answered is there, no device is without one, and all goes on."""
    with server.start() as client:
        root = path_of(client.call("Prepare", key="first"))
        server.account.run(["sh", "-ec", 'echo kept > "$1/file"; sync "$1/file"', "sh", root])
        client.call("Commit", key="first", name="base")
        client.call("Prepare", key="box", parent="base")
        server.stop(number)
    if number == signal.SIGKILL:  # as if it had been killed between a device and its row
        server.cowfs("layer", "create", "snapshot-orphan")
    with server.start() as client:
        assert sorted(names(client)) == ["base", "box"]
        box = path_of(client.call("Mounts", key="box"))
        assert server.account.run(["cat", box / "file"]).stdout == "kept\n"
        client.call("Commit", key="box", name="second")
        client.call("Remove", key="second")
        client.call("Remove", key="base")
    assert server.stop() == 0, server.log()
    assert "snapshot-" not in server.cowfs("list")
    assert server.cowfs("pool", "check").startswith("clean")


SMALL = ["dm.loopdatasize=24M", "dm.loopmetadatasize=2M", "dm.basesize=64M"]
REFERENCE = "containerd.io/snapshot.ref"


def test_a_layer_that_is_here_is_not_unpacked_again(server: Server) -> None:
    """Nor for another namespace; containerd finds the committed snapshot by its label and its parent."""
    with server.start() as client:
        for number, parent in ((1, ""), (2, "one/2/sha256:aa")):
            client.call("Prepare", key=f"one/{number}/extract", parent=parent)
            name = "one/2/sha256:aa" if number == 1 else "one/4/sha256:bb"
            client.call("Commit", key=f"one/{number}/extract", name=name)
        client.call("Cleanup")  # of the devices that were committed
        before = server.cowfs("list")

        def refused_with(reference: str, parent: str) -> Code | None:
            try:
                client.call("Prepare", key="two/9/extract", parent=parent, labels={REFERENCE: reference})
            except CallFailed as error:
                return error.code
            client.call("Remove", key="two/9/extract")
            return None

        assert refused_with("sha256:aa", "") is Code.ALREADY_EXISTS
        assert refused_with("sha256:bb", "one/2/sha256:aa") is Code.ALREADY_EXISTS
        assert names(client, f'labels."{REFERENCE}"==sha256:aa,parent==""') == ["one/2/sha256:aa"]
        assert names(client, f'labels."{REFERENCE}"==sha256:bb,parent=="one/2/sha256:aa"') == ["one/4/sha256:bb"]
        assert refused_with("sha256:bb", "") is None  # of another parent
        assert refused_with("sha256:a", "") is None
        assert refused_with("%", "") is None
        assert server.cowfs("list") == before


def test_devices_of_snapshots_are_named_and_kept(server: Server) -> None:
    """With the snapshotter or without it: what lists devices says whose they are, and 'remove' refuses them."""
    with server.start() as client:
        root = path_of(client.call("Prepare", key="default/1/extract"))
        server.account.run(["sh", "-ec", 'echo one > "$1/file"', "sh", root])
        client.call("Commit", key="default/1/extract", name="default/2/sha256:aa")
        box = path_of(client.call("Prepare", key="default/3/box", parent="default/2/sha256:aa")).parent.name
        for is_served in (True, False):
            if not is_served:
                assert server.stop() == 0
            rows = {line.split()[0]: line for line in server.cowfs("list").splitlines()}
            assert "default/3/box (active)" in rows[box]
            # The device that the snapshot had before it was committed may be there for a moment.
            (base,) = (name for name, line in rows.items() if "default/2/sha256:aa (committed, 1 made of it)" in line)
            for words in (
                ["remove", base],
                ["remove", "--deferred", base],
                ["layer", "remove", base],
                ["rename", base, "other"],
                ["rollback", base, box],
                ["rollback", "--force", box, base],
                ["cp", "/etc/hostname", f"{base}:/x"],
            ):
                done = server.account.run(["cowfs", "--home", server.home, *words], check=False)
                assert done.returncode != 0, words
                assert "containerd's snapshot default/" in done.stderr, done.stderr
                assert "ctr -n default snapshots --snapshotter cowfs rm " in done.stderr
            assert server.account.run(["cowfs", "--home", server.home, "cat", f"{base}:/file"]).stdout == "one\n"
    with server.start() as client:
        client.call("Remove", key="default/3/box")
        client.call("Remove", key="default/2/sha256:aa")
    assert "snapshot-" not in server.cowfs("list")


def test_usage_is_what_a_removal_gives_back(server: Server) -> None:
    with server.start() as client:
        client.call("Prepare", key="a")
        client.call("Commit", key="a", name="base")
        client.call("Prepare", key="b", parent="base")
        root = path_of(client.call("Mounts", key="b"))
        server.account.run(["sh", "-ec", 'seq 1 100000 > "$1/numbers"; mkdir "$1/d"; : > "$1/d/f"', "sh", root])
        client.call("Commit", key="b", name="top")
        usage = client.call("Usage", key="top")
        assert usage.inodes == 3
        client.call("Cleanup")  # of the device that was committed
        used = used_bytes(server)
        client.call("Remove", key="top")
        assert used - used_bytes(server) == usage.size


def used_bytes(server: Server) -> int:
    used: int = json.loads(server.cowfs("--json", "status"))["data_used_bytes"]
    return used


def test_a_full_pool_is_said_in_our_words(server: Server) -> None:
    with server.start(*SMALL) as client:
        root = path_of(client.call("Prepare", key="a"))
        server.cowfs("pool", "set", "--no-space", "error")
        done = server.account.run(["dd", "if=/dev/urandom", f"of={root}/big", "bs=1M", "count=40"], check=False)
        assert done.returncode != 0
        with pytest.raises(CallFailed, match=r"space.*free") as caught:
            client.call("Prepare", key="b")
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        server.account.run(["rm", root / "big"])
        server.account.run(["sync", "-f", root], check=False)
        client.call("Remove", key="a")
        client.call("Prepare", key="b")


def test_a_pool_that_needs_a_check_is_served_as_far_as_it_can_be(server: Server) -> None:
    """By the next snapshotter, too; repaired, it has every snapshot, and no device without one."""
    with server.start() as client:
        box = path_of(client.call("Prepare", key="box"))
        server.account.run(["sh", "-ec", 'echo one > "$1/file"', "sh", box])
        client.call("Commit", key="box", name="image")
        client.call("Usage", key="image")
        old = path_of(client.call("Prepare", key="old", parent="image"))
        server.cowfs("faults", "add", old.parent.name, "pool-mode", "create", "--mode", "needs_check")
        server.account.run(["touch", old / "new"], check=False)  # in memory, it may succeed
        assert refused(client, "Prepare", key="new") is Code.UNAVAILABLE
        client.call("Remove", key="old")
    assert server.stop() == 0, server.log()
    with server.start() as client:
        assert names(client) == ["image"]
        assert refused(client, "Prepare", key="new", parent="image") is Code.UNAVAILABLE
        view = path_of(client.call("View", key="view", parent="image"), "ro")
        assert server.account.run(["cat", view / "file"]).stdout == "one\n"
        client.call("Remove", key="view")
    assert server.stop() == 0, server.log()
    server.cowfs("pool", "check", "--repair")
    with server.start() as client:
        client.call("Prepare", key="new", parent="image")
        client.call("Remove", key="new")
        client.call("Remove", key="image")
    assert server.stop() == 0, server.log()
    assert "snapshot-" not in server.cowfs("list")
    assert server.cowfs("pool", "check").startswith("clean")
