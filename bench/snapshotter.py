"""What do calls of the snapshotter cost, and the import of an image, beside containerd's own overlayfs?

The calls go over one connection to `cowfs snapshotter`, as containerd's do; each row is the time of one call. Others'
Prepare is that of a second connection while a layer of 8 000 files is unpacked. Imports are `ctr images import` of one
image of 8 000 files, 65 MB, uncompressed: into cowfs by its diff service, into cowfs through the mount by containerd's
own `walking`, and into overlayfs, in turn on one containerd.

Expected: Prepare is a snapshot of a device, 10 ms at most; View, Stat and List read a row, 3, 2 and 2 ms; Remove and
Commit are one and two changes of the pool, 20 ms. An import takes at most 3 times overlayfs' time, and a quarter of
that through the mount. Only root has the imports.
"""

from __future__ import annotations

import io
import itertools
import os
import statistics
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.rig.harness import Bench
from tests.containerd.grpc_client import CallFailed, GrpcClient, connected
from tests.kit.containerd_engine import Containerd, is_runc_unpacked, is_unpacked, write_image

LAYER = "application/vnd.oci.image.layer.v1.tar"
OPTIONS = ("dm.loopdatasize=4G", "dm.loopmetadatasize=64M", "dm.basesize=2G")
GOALS_MS = {"Prepare": 10.0, "View": 3.0, "Stat": 2.0, "List(300)": 2.0, "Commit": 20.0, "Remove": 20.0}


def run(bench: Bench) -> None:
    rounds = 5 if bench.quick else 40
    files = 200 if bench.quick else 8000
    engine = Containerd(bench.directory / "e", bench.directory / "s")
    server = _start(bench.directory, engine.socket)
    try:
        with connected(bench.directory / "s", partial(_require_alive, server)) as client:
            _calls(bench, client, rounds)
        if os.geteuid() != 0 or not (is_unpacked() and is_runc_unpacked()):
            bench.without("imports", "they need root and containerd", "python -m tests.kit.containerd_engine")
            return
        image = bench.directory / "image.tar"
        _write(image, files)
        with engine:
            _imports(bench, engine, image, bench.directory / "s", 1 if bench.quick else 3)
    finally:
        server.terminate()
        server.wait()


def _start(directory: Path, containerd: Path) -> subprocess.Popen[bytes]:
    words = [word for option in OPTIONS for word in ("--storage-opt", option)]
    command = [sys.executable, "-m", "cowfs", "--home", str(directory / "h"), *words]
    command += ["snapshotter", "--socket", str(directory / "s"), "--containerd", str(containerd)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def _require_alive(server: subprocess.Popen[bytes]) -> None:
    assert server.poll() is None, "the snapshotter ended"


def _calls(bench: Bench, client: GrpcClient, rounds: int) -> None:
    client.call("Prepare", key="first")
    client.call("Commit", key="first", name="base")
    found: dict[str, list[float]] = {name: [] for name in GOALS_MS}

    def timed(row: str, call: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        answer = call()
        found[row].append((time.perf_counter() - begin) * 1000)
        return answer

    def ask(row: str, **fields: str) -> Any:
        return timed(row, lambda: client.call(row, **fields))

    for number in range(rounds):
        prepared = ask("Prepare", key=f"a{number}", parent="base")
        ask("View", key=f"v{number}", parent="base")
        ask("Stat", key=f"a{number}")
        (Path(prepared.mounts[0].source) / "file").write_text("changed")
        ask("Commit", key=f"a{number}", name=f"c{number}")
    for number in range(300 - 2 * rounds - 1):
        client.call("View", key=f"w{number}", parent="base")
    for _ in range(rounds):
        timed("List(300)", lambda: client.answers("List"))
    for number in range(rounds):
        ask("Remove", key=f"c{number}")
    for row, values in found.items():
        measured = bench.record(row, "cowfs", "ms", values)
        bench.goal(f"{row}: median", measured.median, at_most=GOALS_MS[row])


def _write(image: Path, files: int) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for number in range(files):
            info = tarfile.TarInfo(f"d{number // 100}/f{number}")
            info.size = 8200
            tar.addfile(info, io.BytesIO(os.urandom(info.size)))
    write_image(image, "docker.io/library/many:1", [(archive.getvalue(), archive.getvalue(), LAYER)], ["sh"])


def _imports(bench: Bench, engine: Containerd, image: Path, socket: Path, rounds: int) -> None:
    found: dict[str, list[float]] = {"cowfs": [], "overlayfs": [], "cowfs through the mount": []}
    waits: list[float] = []
    for _ in range(rounds):
        for name, values in found.items():
            if name == "cowfs through the mount":
                engine.restart_with(["walking"])
            begin = time.perf_counter()
            with _preparing(socket, waits if name == "cowfs" else []):
                engine.ctr("images", "import", "--snapshotter", name.split()[0], image)
            values.append(time.perf_counter() - begin)
            engine.ctr("images", "rm", "--sync", "docker.io/library/many:1")
            if name == "cowfs through the mount":
                engine.restart_with(["cowfs-diff", "walking"])
    figures = {name: bench.record("import of 8 000 files, 65 MB", name, "s", values) for name, values in found.items()}
    bench.goal_ratio("import: cowfs / overlayfs", figures["cowfs"], figures["overlayfs"], at_most=3.0)
    bench.goal_ratio(
        "import: cowfs / through the mount", figures["cowfs"], figures["cowfs through the mount"], at_most=0.25
    )
    bench.record("others' Prepare meanwhile", "cowfs", "ms", waits)
    bench.goal("others' Prepare: 95 of 100", statistics.quantiles(waits, n=20)[-1], at_most=100.0)


class _preparing:  # noqa: N801
    """Another client's Prepare and Remove, one after the other, in a thread; their times go to `waits`."""

    def __init__(self, socket: Path, waits: list[float]) -> None:
        self._socket = socket
        self._waits = waits
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with GrpcClient(self._socket) as client:
            for number in itertools.count():
                if self._has_ended.wait(0.05):
                    return
                try:
                    begin = time.perf_counter()
                    client.call("Prepare", key=f"other{number}", parent="other")
                    self._waits.append((time.perf_counter() - begin) * 1000)
                    client.call("Remove", key=f"other{number}")
                except CallFailed:  # containerd's garbage collection has taken what it did not ask for
                    client.call("Prepare", key=f"first{number}")
                    client.call("Commit", key=f"first{number}", name="other")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()
