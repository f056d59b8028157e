"""A limit for one snapshot: the label containerd.io/snapshot/max-size of Prepare."""

from __future__ import annotations

import pytest

from cowfs.containerd.grpc import Code
from cowfs.containerd.snapshots import MAX_SIZE
from tests.containerd.grpc_client import CallFailed, GrpcClient
from tests.containerd.server import Server, path_of

pytestmark = pytest.mark.fuse
MIB = 1 << 20


def write(server: Server, client: GrpcClient, key: str, size_mib: int) -> tuple[int, str]:
    """Write a file of zeros into a snapshot; how many MiB are there then, and what dd said."""
    path = path_of(client.call("Mounts", key=key)) / "file"
    words = ["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size_mib}"]
    said = server.account.run(words, check=False).stderr
    return int(server.account.run(["stat", "-c", "%s", path]).stdout) // MIB, said


def problem(client: GrpcClient, value: object, parent: str = "") -> str:
    with pytest.raises(CallFailed) as caught:
        client.call("Prepare", key="wrong", parent=parent, labels={MAX_SIZE: str(value)})
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_limit_is_of_one_snapshot_alone(server: Server) -> None:
    """The others go on, and what is made of its commit has no limit."""
    with server.start() as client:
        client.call("Prepare", key="limited", labels={MAX_SIZE: str(8 * MIB)})
        client.call("Prepare", key="other")
        written, said = write(server, client, "limited", 12)
        assert 7 <= written <= 8
        assert "No space left on device" in said
        assert write(server, client, "other", 12)[0] == 12

        client.call("Commit", key="limited", name="base")
        assert "begins with" in problem(client, 4 * MIB, "base")
        client.call("Prepare", key="free", parent="base")
        assert write(server, client, "free", 12)[0] == 12
        client.call("Prepare", key="limited again", parent="base", labels={MAX_SIZE: str(10 * MIB)})
        written, said = write(server, client, "limited again", 12)  # over the file that it inherits
        assert 9 <= written <= 10
        for key in ("free", "limited again", "other", "base"):
            client.call("Remove", key=key)
    assert server.stop() == 0
    assert "snapshot-" not in server.cowfs("list")
    assert server.cowfs("pool", "check").startswith("clean")


def test_a_limit_above_the_size_of_devices_makes_a_larger_one(server: Server) -> None:
    with server.start() as client:
        client.call("Prepare", key="large", labels={MAX_SIZE: str(64 * MIB)})
        assert write(server, client, "large", 40)[0] == 40


def test_what_is_no_limit_is_refused(server: Server) -> None:
    with server.start() as client:
        for value in ("", "0", "-1", "1G", "1.5", 1 << 63):
            assert f"{str(value)!r}, and not a number of bytes above 0" in problem(client, value)
        assert "cannot be limited to 4096 bytes" in problem(client, 4096)
        problem(client, 1 << 62)
        client.call("Prepare", key="a", labels={MAX_SIZE: str(8 * MIB)})
        info = {"name": "a", "labels": {MAX_SIZE: str(9 * MIB)}}
        with pytest.raises(CallFailed, match="cannot be changed; it is for Prepare"):
            client.call("Update", info=info, update_mask={"paths": [f"labels.{MAX_SIZE}"]})
        client.call("Update", info={"name": "a", "labels": {"x": "y"}}, update_mask={"paths": ["labels.x"]})
        client.call("View", key="view", labels={MAX_SIZE: "nothing"})  # nothing is written to it
        client.call("Remove", key="a")
        client.call("Remove", key="view")
    assert server.stop() == 0
    assert "snapshot-" not in server.cowfs("list")
