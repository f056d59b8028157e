"""The plugin protocol as dockerd speaks it: a real HTTP client on a Unix socket, a driver of dicts behind it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, cast

import pytest
import trio

from cowfs.docker.plugin.protocol import GraphDriverPlugin, Init
from cowfs.errors import DeviceExists, HomeError
from cowfs.home.executor import Executor, Views
from cowfs.home.opened.open_home import OpenHome
from cowfs.layers import Change, ChangeKind
from cowfs.layers.info import DriverInfo, status_items
from cowfs.steps import Pieces, Steps
from tests.docker.unix_client import UnixClient

INFO = DriverInfo(pool_name="p", pool_block_bytes=65536)
PIECES = [b"a" * 70_000, b"", b"b" * 30_000]


class DictDriver:
    """Layers without files."""

    def __init__(self) -> None:
        self.layers: dict[str, str | None] = {}
        self.options: dict[str, Mapping[str, str]] = {}
        self.applied: dict[str, bytes] = {}
        self.steps = 0
        self.closed = 0

    def create(self, layer_id: str, parent: str | None, storage_options: Mapping[str, str] | None = None) -> None:
        if layer_id in self.layers:
            raise DeviceExists(f"device {layer_id!r} exists already")
        self.layers[layer_id] = parent
        self.options[layer_id] = storage_options or {}

    def remove(self, layer_id: str) -> None:
        self.layers.pop(layer_id, None)

    def exists(self, layer_id: str) -> bool:
        return layer_id in self.layers

    def list_layers(self) -> list[str]:
        return sorted(self.layers)

    def get(self, layer_id: str, mount_label: str = "") -> str:
        return f"/mnt/{layer_id}/rootfs"

    def put(self, layer_id: str) -> None:
        pass

    def metadata(self, layer_id: str) -> dict[str, str]:
        return {"DeviceId": "7"}

    can_show_files = True

    def info(self) -> DriverInfo:
        return INFO

    def changes(self, layer_id: str, parent: str | None) -> Steps[list[Change]]:
        yield
        return [Change(b"/a", ChangeKind.ADD), Change(b"/b\xff", ChangeKind.DELETE)]

    def diff(self, layer_id: str, parent: str | None, *, sparse: bool = False) -> Pieces[bytes]:
        if layer_id == "bad":
            raise HomeError("it cannot be read")
        try:
            for piece in PIECES:
                yield piece
                if layer_id == "breaks":
                    raise HomeError("the disk is gone")
        finally:
            self.closed += 1

    def apply(
        self,
        layer_id: str,
        parent: str | None,
        archive: IO[bytes],
        *,
        as_docker: bool = False,
        is_layer: bool = True,
    ) -> Steps[int]:
        assert as_docker
        assert is_layer
        data = b""
        while part := archive.read(1 << 16):
            data += part
            self.steps += 1
            yield
        self.applied[layer_id] = data
        return len(data)

    def diff_size(self, layer_id: str, parent: str | None) -> Steps[int]:
        yield
        return 1 << 40

    def cleanup(self) -> None:
        self.layers.clear()


class Served(Views):
    """A home with that driver alone, and a note of what its views were asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.driver = DictDriver()
        self.init: Init | None = None
        self.calls: list[tuple[str, str]] = []
        self.views: list[object] = []

    async def initialise(self, init: Init) -> None:
        self.init = init

    async def write_back(self, device: str) -> None:
        self.calls.append(("write back", device))

    async def close_if_idle(self, device: str) -> bool:
        self.calls.append(("close", device))
        return False

    async def begin_unmount(self, device: str) -> None:
        pass

    async def invalidate(self, device: str) -> None:
        self.calls.append(("invalidate", device))

    async def drop_caches(self) -> None:
        self.calls.append(("drop caches", ""))

    async def give_up(self, device: str, *, force: bool) -> None:
        self.calls.append(("give up", device))

    async def take_up(self, device: str) -> None:
        self.calls.append(("take up", device))

    async def put_aside(self, device: str) -> None:
        self.calls.append(("put aside", device))

    async def take_again(self, device: str) -> None:
        self.calls.append(("take again", device))


def with_client(tmp_path: Path, use: Callable[[UnixClient], None]) -> Served:
    """Serve, and run a client in a thread beside it."""
    served = Served(tmp_path)
    executor = Executor(cast(OpenHome, served), served)

    async def main() -> None:
        path = tmp_path / "s"
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(str(path))
        listening.listen(5)
        plugin = GraphDriverPlugin(lambda: executor, served.initialise, tmp_path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, plugin.serve_client, [trio.SocketListener(listening)])
            client = UnixClient(path)
            try:
                await trio.to_thread.run_sync(use, client)
            finally:
                client.close()
                nursery.cancel_scope.cancel()

    trio.run(main)
    return served


def test_the_calls_of_a_layer_s_life(tmp_path: Path) -> None:
    def use(client: UnixClient) -> None:
        assert client.call("Plugin.Activate") == {"Implements": ["GraphDriver"]}
        maps = [{"container_id": 0, "host_id": 100000, "size": 65536}]
        assert client.call("GraphDriver.Init", Home="/h", Opts=["dm.fs=ext4"], UIDMaps=None, GIDMaps=maps) == {}
        assert client.call("GraphDriver.Create", ID="a", Parent="", MountLabel="", StorageOpt=None) == {}
        assert client.call("GraphDriver.CreateReadWrite", ID="b", Parent="a", StorageOpt={"size": "20G"}) == {}
        assert client.call("GraphDriver.Create", ID="a") == {"Err": "device 'a' exists already"}
        assert client.call("GraphDriver.Exists", ID="b") == {"Exists": True}
        assert client.call("GraphDriver.Get", ID="b", MountLabel="") == {"Dir": "/mnt/b/rootfs"}
        assert client.call("GraphDriver.Put", ID="b") == {}
        assert client.call("GraphDriver.Status") == {"Status": [list(item) for item in status_items(INFO)]}
        assert client.call("GraphDriver.GetMetadata", ID="b") == {"Metadata": {"DeviceId": "7"}}
        changes = client.call("GraphDriver.Changes", ID="b", Parent="a")["Changes"]
        assert changes == [{"Path": "/a", "Kind": 1}, {"Path": "/b�", "Kind": 2}]
        assert client.call("GraphDriver.DiffSize", ID="b", Parent="a") == {"Size": 1 << 40}
        assert client.call("GraphDriver.Capabilities") == {"Capabilities": {"ReproducesExactDiffs": False}}
        assert client.call("GraphDriver.Remove", ID="b") == {}
        assert client.call("GraphDriver.Exists", ID="b") == {"Exists": False}
        assert client.call("GraphDriver.Cleanup") == {}

    served = with_client(tmp_path, use)
    assert served.init is not None
    assert served.init.maps().root == (0, 100000)
    assert served.driver.options["b"] == {"size": "20G"}
    assert served.calls == [
        ("write back", "base"),
        ("write back", "a"),
        ("write back", "base"),
        ("close", "b"),
        ("write back", "a"),
        ("write back", "b"),
        ("write back", "a"),
        ("write back", "b"),
        ("close", "b"),
    ]


def test_a_diff_is_streamed_and_an_archive_taken(tmp_path: Path) -> None:
    whole = b"".join(PIECES)

    def use(client: UnixClient) -> None:
        client.request("POST", "/GraphDriver.Diff", json.dumps({"ID": "a", "Parent": ""}))
        response = client.getresponse()
        assert (response.status, response.read()) == (200, whole)
        # As Go sends it: chunked, of unknown length.
        client.request("POST", "/GraphDriver.ApplyDiff?id=a&parent=", iter([whole, whole]), encode_chunked=True)
        assert json.loads(client.getresponse().read()) == {"Size": 2 * len(whole)}

    served = with_client(tmp_path, use)
    assert served.driver.applied == {"a": 2 * whole}
    assert served.driver.steps == -(-2 * len(whole) // (1 << 16))
    assert served.driver.closed == 1


def test_a_diff_that_fails_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    def use(client: UnixClient) -> None:
        client.request("POST", "/GraphDriver.Diff", json.dumps({"ID": "bad"}))
        response = client.getresponse()
        assert (response.status, json.loads(response.read())) == (500, {"Err": "it cannot be read"})
        client.request("POST", "/GraphDriver.Diff", json.dumps({"ID": "breaks"}))
        response = client.getresponse()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        client.close()
        assert client.call("GraphDriver.Exists", ID="a") == {"Exists": False}

    assert with_client(tmp_path, use).driver.closed == 1


def test_a_client_that_leaves_in_the_middle_of_a_diff_frees_the_layer(tmp_path: Path) -> None:
    def use(client: UnixClient) -> None:
        client.request("POST", "/GraphDriver.Diff", json.dumps({"ID": "a"}))
        client.sock.close()
        client.close()
        assert client.call("GraphDriver.Exists", ID="a") == {"Exists": False}

    assert with_client(tmp_path, use).driver.closed == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/GraphDriver.Nonsense", b"{}", 404, "no such request"),
        ("/", b"", 404, "no such request"),
        ("//[", b"{}", 404, "no such request"),
        ("/GraphDriver.Init", b'{"UIDMaps": [{"container_id": -1, "host_id": 0, "size": 1}]}', 200, "not a request"),
        ("/GraphDriver.Create", b"{", 200, "not a request of the protocol"),
        ("/GraphDriver.Create", b'{"ID": 7}', 200, "not a request of the protocol"),
        ("/GraphDriver.Create", b'{"ID": "' + b"x" * (2 << 20) + b'"}', 200, "longer than a request can be"),
    ],
)
def test_bad_requests_are_answered_with_one_line(
    tmp_path: Path, path: str, body: bytes, status: int, words: str
) -> None:
    def use(client: UnixClient) -> None:
        client.request("POST", path, body)
        response = client.getresponse()
        text = json.loads(response.read())["Err"]
        assert response.status == status
        assert words in text
        assert "\n" not in text
        assert client.call("Plugin.Activate") == {"Implements": ["GraphDriver"]}

    with_client(tmp_path, use)


@pytest.mark.parametrize(
    ("request_bytes", "status", "words"),
    [
        (b"\x16\x03\x01 hello?\r\n\r\n", 400, b"not a request of HTTP/1.1"),
        (b"POST /Plugin.Activate HTTP/1.1\r\n\r\n", 400, b"Host"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, b"Host"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", 400, b"Content-Length"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, b"chunked"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nHost: " + b"x" * 64_000, 431, b""),
        (b"POST /GraphDriver.Create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, b"chunk"),
    ],
    ids=["not HTTP", "no Host", "two Hosts", "length", "encoding", "endless head", "broken body"],
)
def test_what_breaks_the_rules_of_http_is_answered_and_ends_the_connection(
    tmp_path: Path, request_bytes: bytes, status: int, words: bytes
) -> None:
    def use(client: UnixClient) -> None:
        client.connect()
        client.sock.sendall(request_bytes)
        with client.sock.makefile("rb") as file:
            head, _, body = file.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"Connection: close" in head
        assert words in body
        client.close()
        assert client.call("Plugin.Activate") == {"Implements": ["GraphDriver"]}

    with_client(tmp_path, use)


def test_a_request_of_http_1_0_needs_no_host(tmp_path: Path) -> None:
    def use(client: UnixClient) -> None:
        client.connect()
        client.sock.sendall(b"POST /Plugin.Activate HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
        with client.sock.makefile("rb") as file:
            assert b"GraphDriver" in file.read()

    with_client(tmp_path, use)


@pytest.mark.parametrize("method", ["HEAD", "GET", "CONNECT", "DELETE", "OPTIONS"])
def test_what_is_no_post_is_refused(tmp_path: Path, method: str) -> None:
    def use(client: UnixClient) -> None:
        client.request(method, "/GraphDriver.Status")
        response = client.getresponse()
        assert (response.status, response.read()) == (405, b"")
        assert client.call("Plugin.Activate") == {"Implements": ["GraphDriver"]}

    with_client(tmp_path, use)


def test_a_client_that_leaves_before_its_request_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def use(client: UnixClient) -> None:
        for request in ("Create", "ApplyDiff?id=a"):
            client.connect()
            client.sock.sendall(
                b"POST /GraphDriver.%b HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{" % request.encode()
            )
            client.close()
        assert client.call("GraphDriver.Exists", ID="a") == {"Exists": False}

    assert with_client(tmp_path, use).driver.applied == {}
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_plugin_starts_without_what_few_devices_need() -> None:
    code = (
        "import sys, cowfs.docker.plugin.serve\n"
        "unwanted = {'cowfs.xfs.volume', 'cowfs.crashes', 'cowfs.disk_images', 'cowfs.oci', 'cowfs.traces', 'rich'}\n"
        "sys.exit(' '.join(sys.modules.keys() & unwanted) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
