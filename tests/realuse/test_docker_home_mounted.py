"""A home that Docker left, through the command line and its mounts; tests/data/README.md says what is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.docker_home import BUSYBOX_BYTES, DEVICE_IDS, DIRECTORY, LAYER_1, LAYER_2, LAYER_3, UNPACK

if TYPE_CHECKING:
    from tests.conftest import Account

pytestmark = pytest.mark.fuse


class DockerHome:
    def __init__(self, account: Account) -> None:
        self.account = account
        account.run(UNPACK, cwd=account.directory)
        self.home = account.directory / DIRECTORY
        self.target = account.mkdir("mnt")

    def cowfs(self, *words: str | Path) -> str:
        return self.account.run(["cowfs", "--home", self.home, *words]).stdout

    def devices(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in json.loads(self.cowfs("--json", "list"))}

    @contextmanager
    def mounted(self, name: str | None, *options: str) -> Iterator[Path]:
        self.cowfs("mount", *options, *([name] if name else []), self.target)
        try:
            yield self.target
        finally:
            self.cowfs("umount", self.target)

    def names(self, path: Path) -> list[str]:
        return self.account.run(["ls", "-A", path]).stdout.split()

    def judge(self, *names: str) -> None:
        self.cowfs("check")
        self.account.run(["thin_check", self.home / "devicemapper" / "metadata"])
        for name in names:
            with self.mounted(name, "--raw", "--read-only") as root:
                self.account.run(["e2fsck", "-fn", root / name])


@pytest.fixture
def docker_home(account: Account, needs_fuse: None) -> DockerHome:
    return DockerHome(account)


def test_listed(docker_home: DockerHome) -> None:
    rows = docker_home.devices()
    assert {name: row["id"] for name, row in rows.items()} == DEVICE_IDS
    assert {row["size_bytes"] for row in rows.values()} == {1 << 30}
    assert {row["id"]: row["mapped_bytes"] >> 16 for row in rows.values()} == {1: 783, 2: 815, 4: 816, 6: 817}


@pytest.mark.parametrize(
    ("name", "texts"),
    [(LAYER_1, {}), (LAYER_2, {"a": "a\n"}), (LAYER_3, {"a": "a\n", "b": "b\n"})],
    ids=["layer 1", "layer 2", "layer 3"],
)
@pytest.mark.parametrize("options", [[], ["--read-only"]], ids=["writable", "read-only"])
def test_each_layer_mounts_and_reads(
    docker_home: DockerHome, name: str, texts: dict[str, str], options: list[str]
) -> None:
    run = docker_home.account.run
    with docker_home.mounted(name, *options) as root:
        layer = root / "rootfs"
        assert {"busybox", *texts} <= set(docker_home.names(layer))
        assert {file: run(["cat", layer / file]).stdout for file in texts} == texts
        assert int(run(["stat", "-c", "%s", layer / "busybox"]).stdout) == BUSYBOX_BYTES
        assert len(run([layer / "busybox", "echo", "-n", "it runs"]).stdout) == len("it runs")
        if docker_home.account.uid == 0:  # for root's eyes only
            assert run(["cat", root / "id"]).stdout == LAYER_1  # written once, inherited by what grew from it
    docker_home.judge(name)


@pytest.mark.parametrize("options", [[], ["--read-only"]], ids=["writable", "read-only"])
def test_all_layers_in_one_mount(docker_home: DockerHome, options: list[str]) -> None:
    run = docker_home.account.run
    with docker_home.mounted(None, *options) as root:
        assert set(docker_home.names(root)) == {LAYER_1, LAYER_2, LAYER_3}
        for layer, names in ((LAYER_1, {"busybox"}), (LAYER_2, {"busybox", "a"}), (LAYER_3, {"busybox", "a", "b"})):
            assert names <= set(docker_home.names(root / layer / "rootfs"))
            run(["cmp", root / LAYER_1 / "rootfs/busybox", root / layer / "rootfs/busybox"])
        docker_home.cowfs("snapshot", LAYER_3, "mine")
        assert run(["cat", root / "mine/rootfs/a", root / "mine/rootfs/b"]).stdout == "a\nb\n"
        docker_home.cowfs("remove", "mine")
        assert set(docker_home.names(root)) == {LAYER_1, LAYER_2, LAYER_3}
    docker_home.judge(*docker_home.devices())


def test_the_base_device_mounts_empty(docker_home: DockerHome) -> None:
    with docker_home.mounted("base", "--read-only") as root:
        assert docker_home.names(root) == ["lost+found"]


def test_layer_is_snapshotted_and_written(docker_home: DockerHome) -> None:
    """The new layer shows what was written, the old one what Docker wrote."""
    run = docker_home.account.run
    docker_home.cowfs("snapshot", LAYER_3, "mine")
    if docker_home.account.uid == 0:
        with docker_home.mounted("mine") as root:
            run(["sh", "-ec", 'cd "$0"; echo c >c; rm a; cp busybox copy', root / "rootfs"])
    else:
        # Docker's files belong to root, in a mount as on any disk; the disk itself is the user's own.
        run(["sh", "-c", 'echo c >"$0"', docker_home.account.directory / "c"])
        with docker_home.mounted("mine", "--raw") as root:
            commands = "write c rootfs/c\nrm rootfs/a\nwrite busybox rootfs/copy\n"
            run(["debugfs", "-w", "-f", "-", root / "mine"], input="dump rootfs/busybox busybox\n" + commands)
    with docker_home.mounted("mine", "--read-only") as root:
        assert set(docker_home.names(root / "rootfs")) == {"b", "busybox", "c", "copy"}
        assert run(["cat", root / "rootfs/c"]).stdout == "c\n"
        run(["cmp", root / "rootfs/busybox", root / "rootfs/copy"])
    with docker_home.mounted(LAYER_3, "--read-only") as root:
        assert set(docker_home.names(root / "rootfs")) == {"a", "b", "busybox"}
        assert run(["cat", root / "rootfs/a"]).stdout == "a\n"
    docker_home.judge(*docker_home.devices())
