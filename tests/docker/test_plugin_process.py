"""`cowfs docker-plugin` as a process: a daemon's requests, files at the paths it hands out, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Account
from tests.docker.unix_client import UnixClient
from tests.layers.driver_home import archive, names

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

SIZES = ["dm.loopdatasize=256M", "dm.loopmetadatasize=4M", "dm.basesize=32M"]


class Plugin:
    """The process, its socket and its home; one account's."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.home = account.directory / "home"
        self.socket = account.directory / "plugin.sock"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> UnixClient:
        words = ["cowfs", "--home", self.home, *options, "docker-plugin", "--socket", self.socket]
        with (self.account.directory / "log").open("a") as log:
            self.process = self.account.start(words, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            client = UnixClient(self.socket)
            try:
                client.connect()
            except (FileNotFoundError, ConnectionRefusedError):
                assert self.process.poll() is None, self.log()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                return client

    def log(self) -> str:
        return (self.account.directory / "log").read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def refused(self, *options: str) -> str:
        """The one line with which it does not start."""
        words = ["cowfs", "--home", self.home, *options, "docker-plugin", "--socket", self.socket]
        result = self.account.run(words, check=False)
        assert result.returncode in (2, 5), result
        assert "Traceback" not in result.stderr
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("cowfs: ")]
        return line


@pytest.fixture
def plugin(account: Account) -> Iterator[Plugin]:
    made = Plugin(account)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()


def init(client: UnixClient, *options: str) -> dict[str, object]:
    return client.call("GraphDriver.Init", Home="/nowhere", Opts=list(options), UIDMaps=None, GIDMaps=None)


def test_a_daemon_makes_uses_and_leaves_a_home(plugin: Plugin) -> None:
    client = plugin.start()
    assert client.call("Plugin.Activate") == {"Implements": ["GraphDriver"]}
    assert "Init first" in client.call("GraphDriver.Exists", ID="image")["Err"]
    assert "Unknown option" in str(init(client, "dm.colour=red")["Err"])
    assert init(client, *SIZES) == {}
    assert client.call("GraphDriver.Create", ID="image", Parent="") == {}
    assert client.apply("image", archive(a=b"a" * 5000, b=b"b")) == {"Size": 5001}
    assert client.call("GraphDriver.CreateReadWrite", ID="box", Parent="image", StorageOpt={"size": "64M"}) == {}
    path = Path(client.call("GraphDriver.Get", ID="box")["Dir"])
    assert path == plugin.home / "mnt/box/rootfs"
    plugin.account.run(["sh", "-ec", f"cmp {path}/a {path}/a; rm {path}/b; echo new > {path}/new; touch {path}/.wh.a"])
    changes = [{"Path": "/.wh.a", "Kind": 1}, {"Path": "/b", "Kind": 2}, {"Path": "/new", "Kind": 1}]
    assert client.call("GraphDriver.Changes", ID="box", Parent="image") == {"Changes": changes}
    difference = client.diff("box", "image")
    assert names(difference) == [".cowfs-name.wh.a", ".wh.b", "new"]
    assert client.call("GraphDriver.DiffSize", ID="box", Parent="image") == {"Size": 4}
    assert client.call("GraphDriver.Create", ID="again", Parent="image") == {}
    assert client.apply("again", difference) == {"Size": 4}
    as_docker = [{"Path": "/.cowfs-name.wh.a", "Kind": 1}, *changes[1:]]  # by this name Docker finds it for a push
    assert client.call("GraphDriver.Changes", ID="again", Parent="image") == {"Changes": as_docker}
    assert client.call("GraphDriver.Create", ID="copy", Parent="box") == {}
    assert client.call("GraphDriver.Put", ID="box") == {}
    assert dict(client.call("GraphDriver.Status")["Status"])["Base Device Size"] == "33.55MB"
    # The command line uses it.
    listed = plugin.account.run(["cowfs", "--home", plugin.home, "layer", "list"]).stdout
    assert listed == "again\nbox\ncopy\nimage\n"
    assert client.call("GraphDriver.Remove", ID="box") == {}
    assert client.call("GraphDriver.Exists", ID="box") == {"Exists": False}
    assert client.call("GraphDriver.Changes", ID="copy", Parent="image") == {"Changes": changes}
    assert client.call("GraphDriver.Cleanup") == {}
    assert plugin.stop() == 0, plugin.log()
    assert not plugin.socket.exists()
    assert not os.path.ismount(plugin.home / "mnt")
    assert plugin.account.run(["cowfs", "--home", plugin.home, "check"]).stdout.startswith("clean")


def test_none_but_its_user_reaches_the_files_of_layers(plugin: Plugin) -> None:
    """Set-id files and devices in layers are honoured, so the mode that the home had must not matter."""
    plugin.account.run(["sh", "-ec", f"umask 0; mkdir {plugin.home}; chmod 755 {plugin.home} {plugin.home.parent}"])
    client = plugin.start()
    assert init(client, *SIZES) == {}
    client.call("GraphDriver.Create", ID="image")
    client.call("GraphDriver.Get", ID="image")
    mode = "stat -c %a"
    assert plugin.account.run(["sh", "-c", f"{mode} {plugin.home}/mnt"]).stdout == "700\n"
    if os.geteuid() == 0 and plugin.account.name == "root":
        seen = subprocess.run(
            ["ls", f"{plugin.home}/mnt/image"], user="nobody", capture_output=True, text=True, timeout=60, check=False
        )
        assert "Permission denied" in seen.stderr
        identity = [{"container_id": 0, "host_id": 100_000, "size": 65_536}]
        call = client.call("GraphDriver.Init", Home="/nowhere", Opts=[], UIDMaps=identity, GIDMaps=identity)
        assert call == {}
        assert plugin.account.run(["sh", "-c", f"{mode}%g {plugin.home}/mnt"]).stdout == "710100000\n"
    client.call("GraphDriver.Put", ID="image")
    assert plugin.stop() == 0, plugin.log()
    assert plugin.account.run(["sh", "-c", f"{mode} {plugin.home}/mnt"]).stdout == "700\n"


def test_a_home_that_others_may_change_is_refused(plugin: Plugin) -> None:
    plugin.account.run(["cowfs", "--home", plugin.home, "init", "--data-size", "1G"])
    plugin.account.run(["chmod", "g+w", plugin.home])
    assert "others may write into the home" in plugin.refused()
    plugin.account.run(["chmod", "g-w", plugin.home])
    if os.geteuid() == 0 and plugin.account.name == "root":
        os.chown(plugin.home, 4711, 4711)
        assert "belongs to the user 4711" in plugin.refused()


def test_either_side_may_be_restarted(plugin: Plugin) -> None:
    client = plugin.start(*(word for option in SIZES for word in ("--storage-opt", option)))
    assert init(client) == {}
    client.call("GraphDriver.Create", ID="image")
    client.apply("image", archive(a=b"a"))
    client.call("GraphDriver.Get", ID="image")
    # A daemon that died and came back has got nothing.
    assert init(client, "dm.basesize=64M") == {}
    assert dict(client.call("GraphDriver.Status")["Status"])["Base Device Size"] == "67.11MB"
    assert client.call("GraphDriver.Remove", ID="image") == {}
    client.call("GraphDriver.Create", ID="image")
    client.apply("image", archive(a=b"a"))
    client.close()
    # A plugin that was killed comes back without an Init.
    plugin.stop(signal.SIGKILL)
    client = plugin.start()
    deadline = time.monotonic() + 60
    while "Err" in (answer := client.call("GraphDriver.Exists", ID="image")):
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    assert answer == {"Exists": True}
    assert client.call("GraphDriver.Changes", ID="image") == {"Changes": [{"Path": "/a", "Kind": 1}]}
    assert plugin.stop() == 0, plugin.log()


def test_a_home_that_it_cannot_have(plugin: Plugin) -> None:
    plugin.account.run(
        ["cowfs", "--home", plugin.home, "init", "--data-size", "256M", "--metadata-size", "4M", "--base-size", "32M"]
    )
    plugin.account.run(["cowfs", "--home", plugin.home, "layer", "create", "image"])
    plugin.account.run(["cowfs", "--home", plugin.home, "layer", "get", "image"])
    try:
        assert "is held by process" in plugin.refused()
    finally:
        plugin.account.run(["cowfs", "--home", plugin.home, "layer", "put", "image"])
    plugin.account.run(["sh", "-c", f"echo garbage > {plugin.home}/cowfs.json"])
    assert "cowfs.json is damaged" in plugin.refused()


def test_what_it_does_not_start_with(plugin: Plugin) -> None:
    assert "Unknown option" in plugin.refused("--storage-opt", "dm.colour=red")
    plugin.account.run(["sh", "-c", f"echo precious > {plugin.socket}"])
    assert "is not a socket" in plugin.refused()
    assert plugin.socket.read_text() == "precious\n"
    plugin.socket.unlink()
    client = plugin.start()
    assert "listens on" in plugin.refused()
    client.close()
    assert plugin.stop(signal.SIGINT) == 0, plugin.log()
    assert not plugin.socket.exists()
    assert not plugin.home.exists()
