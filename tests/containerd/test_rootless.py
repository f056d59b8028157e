"""A user's containerd under RootlessKit, with a snapshotter of the user's: no process of either is root's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cowfs.errors import MissingRequirement
from tests.conftest import Account
from tests.containerd.grpc_client import connected
from tests.containerd.server import PATIENT
from tests.containerd.tiny_image import IMAGE, write_tiny_image
from tests.kit import containerd_engine
from tests.kit.containerd_engine import RUNC, UNPACKED

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(300)]

CONTAINERD = """\
version = 2
root = "{directory}/containerd"
state = "{directory}/run"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{directory}/containerd.sock"
[proxy_plugins.cowfs]
  type = "snapshot"
  address = "{directory}/cowfs.sock"
[proxy_plugins.cowfs-diff]
  type = "diff"
  address = "{directory}/cowfs.sock"
[plugins."io.containerd.service.v1.diff-service"]
  default = ["cowfs-diff", "walking"]
"""
SNAPSHOTTER = """\
home = "{directory}/home"
socket = "{directory}/cowfs.sock"
containerd = "{directory}/containerd.sock"
storage-opt = ["dm.loopdatasize=256M", "dm.loopmetadatasize=4M", "dm.basesize=32M"]
"""
# The ids that newuidmap(1) grants, for the user of the tests alone: in a mount namespace, so that the machine's stay.
WITH_IDS = """
echo "$1:100000:65536" > "$2/ids"
mount --bind "$2/ids" /etc/subuid
mount --bind "$2/ids" /etc/subgid
shift 2
exec setpriv --reuid "$1" --regid "$2" --clear-groups sh -ec 'shift 2; exec "$@"' sh "$@"
"""
# What needs no cgroup of the user's, which a machine may not give.
WITHOUT_CGROUP = ("--cgroup", "", "--cpu-shares", "0")
SCRIPT = (
    "busybox id -u; busybox stat -c %u:%a /etc/b; echo new > /new; busybox rm /etc/b; busybox ls /etc | busybox wc -l"
)


class Rootless:
    """RootlessKit with containerd, and what enters its namespaces."""

    def __init__(self, account: Account) -> None:
        self.directory = account.directory
        self.account = account
        programs = (UNPACKED / "usr/bin", UNPACKED / "usr/sbin", RUNC / "usr/sbin", RUNC / "usr/bin")
        path = os.pathsep.join([*map(str, programs), account.environment["PATH"], "/usr/sbin", "/sbin"])
        self.environment = {**account.environment, "PATH": path, "XDG_RUNTIME_DIR": str(self.directory)}
        for name, text in (("containerd.toml", CONTAINERD), ("snapshotter.toml", SNAPSHOTTER)):
            (self.directory / name).write_text(text.format(directory=self.directory))

    @contextmanager
    def containerd(self) -> Iterator[None]:
        begin = 'rm -f /run/containerd; exec containerd --config "$0"'
        kit = ["rootlesskit", "--net=host", "--copy-up=/etc", "--copy-up=/run", f"--state-dir={self.directory}/kit"]
        kit += ["sh", "-ec", begin, str(self.directory / "containerd.toml")]
        user = [self.account.name, str(self.directory), str(self.account.uid), str(self.account.gid)]
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", WITH_IDS, "sh", *user, *kit]
        with (self.directory / "kit.log").open("w") as log:
            process = subprocess.Popen(words, env=self.environment, cwd="/", stdout=log, stderr=log)
        try:
            connected(self.directory / "containerd.sock", lambda: self._require_alive(process)).__exit__()
            yield
        finally:
            process.terminate()
            process.wait(60)

    def _require_alive(self, process: subprocess.Popen[bytes]) -> None:
        assert process.poll() is None, (self.directory / "kit.log").read_text()

    def _entering(self, *words: str) -> list[str]:
        pid = (self.directory / "kit/child_pid").read_text()
        return ["nsenter", "--user", "--preserve-credentials", "--mount", "--target", pid, *words]

    @contextmanager
    def snapshotter(self) -> Iterator[None]:
        words = self._entering("cowfs", "snapshotter", "--config", str(self.directory / "snapshotter.toml"), *PATIENT)
        with (self.directory / "log").open("w") as log:
            process = self.account.start(words, stdout=log, stderr=log, env=self.environment)
        try:
            connected(self.directory / "cowfs.sock", lambda: self._require_serving(process)).__exit__()
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
        assert status == 0, (self.directory / "log").read_text()

    def _require_serving(self, process: subprocess.Popen[str]) -> None:
        assert process.poll() is None, (self.directory / "log").read_text()

    def ctr(self, *words: str) -> str:
        command = self._entering("ctr", "--address", str(self.directory / "containerd.sock"), *words)
        return self.account.run(command, env=self.environment).stdout


@pytest.fixture
def rootless(root_user: Account, ordinary_user: Account, needs_fuse: None) -> Rootless:
    """Begun by root, for the ids; all that it begins is the ordinary user's."""
    del root_user, needs_fuse
    try:
        containerd_engine.require()
    except MissingRequirement as error:
        pytest.skip(f"{error.message}; run: {error.remedy}")
    for program, package in (("rootlesskit", "rootlesskit"), ("newuidmap", "uidmap")):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}; run: apt-get install {package}")
    return Rootless(ordinary_user)


def test_containers_of_a_user_run_and_leave_nothing(rootless: Rootless) -> None:
    image = write_tiny_image(rootless.directory / "image.tar")
    image.chmod(0o644)
    using = ("--snapshotter", "cowfs")
    with rootless.containerd(), rootless.snapshotter():
        rootless.ctr("images", "import", *using, str(image))
        said = rootless.ctr("run", "--rm", *using, *WITHOUT_CGROUP, IMAGE, "one", "sh", "-ec", SCRIPT)
        assert said.split() == ["0", "0:644", "0"]
        rootless.ctr("run", *using, *WITHOUT_CGROUP, IMAGE, "two", "sh", "-ec", SCRIPT)
        rootless.ctr("snapshots", *using, "commit", "committed", "two")
        rootless.ctr("containers", "rm", "two")
        rootless.ctr("snapshots", *using, "rm", "committed")
        rootless.ctr("images", "rm", "--sync", IMAGE)
        assert rootless.ctr("snapshots", *using, "ls").split() == ["KEY", "PARENT", "KIND"]
    assert (rootless.directory / "log").read_text().count("unpacked sha256:") == 3
    cowfs = ["cowfs", "--home", str(rootless.directory / "home")]
    account = rootless.account
    assert "snapshot-" not in account.run([*cowfs, "list"]).stdout
    assert account.run([*cowfs, "pool", "check"]).stdout.startswith("clean")
