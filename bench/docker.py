"""How does Docker 20.10 fare on cowfs (emulated), beside Docker 20.10 on its own devicemapper driver?

Both run in User-Mode Linux, one after the other, on the same disk; the requests are those of Docker's API, so the
daemon's own work is counted in on both sides. The life of a container is two layers made, used and removed; a start
counts the plugin's in. Outside, the same layers go through cowfs alone, as its plugin would drive it.

Expected: a container's life costs devicemapper four fsynced files, four commits of the kernel's pool, devices made and
taken down, and mounts: 200 ms; ours the same files and commits without devices and mounts: half of it or less, the
daemon's own work being the rest. Unpacking is a system call for each step there and one pass over memory here.
`changes` there stats every file of two trees, here some blocks are compared. A start reads the same records on both
sides, and sets up a pool there.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from bench.guest_docker import Sizes, edits, seconds, tree
from bench.harness import Bench
from cowfs.devices import DeviceSet, HomeOptions
from cowfs.devices.volumes import Volumes
from cowfs.layers.driver import LayerDriver
from cowfs.layers.interface import finish
from cowfs.pool import load_backend
from cowfs.testing import docker_engine

THEIRS, OURS = "devicemapper", "cowfs"
ALONE = "cowfs alone, outside"
MEMORY = "3G"


def run(bench: Bench) -> None:
    if os.geteuid() != 0:
        raise SystemExit("the docker benchmark needs root, for files of other owners")
    docker_engine.fetch()
    sizes = Sizes(
        rounds=bench.size(3, 1),
        layer_files=bench.size(8000, 200),
        layer_bytes=bench.size(80 << 20, 2 << 20),
        tree_files=bench.size(100_000, 1000),
        layers=bench.size(1000, 10),
    )
    taken = {driver: in_guest(driver, bench.directory / driver, sizes) for driver in (THEIRS, OURS)}
    alone = outside(bench.directory, sizes)
    bounds = {"apply": 2.0, "life of a container": 2.0, "changes": 50.0, "start": 2.0}
    for question, bound in bounds.items():
        theirs = bench.record(question, THEIRS, "s", taken[THEIRS][question])
        for contender, values in ((f"{OURS}, in the guest", taken[OURS][question]), (ALONE, alone[question])):
            ours = bench.record(question, contender, "s", values)
            bench.goal(f"{question}: {THEIRS} / {contender}", theirs.median / ours.median, at_least=bound)


def in_guest(driver: str, directory: Path, sizes: Sizes) -> dict[str, list[float]]:
    command = [
        *(sys.executable, "-m", "cowfs", "uml", "--memory", MEMORY, "--"),
        *(sys.executable, "-m", "bench.guest_docker", driver, str(directory), json.dumps(asdict(sizes))),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def outside(directory: Path, sizes: Sizes) -> dict[str, list[float]]:
    """The layers of the same steps, without Docker and without a guest."""
    home = directory / "outside"
    options = HomeOptions(data_size_bytes=40 << 30, metadata_size_bytes=512 << 20)
    backend = load_backend("emulated")
    taken: dict[str, list[float]] = {}
    with closing(DeviceSet.init(home, backend, options)) as devices:
        driver = LayerDriver(devices, Volumes(devices))

        def load(archive: Path, layer_id: str) -> None:
            driver.create(layer_id, None)
            with archive.open("rb") as file:
                finish(driver.apply(layer_id, None, file))

        def life() -> None:
            for layer_id, parent in (("box-init", "small"), ("box", "box-init")):
                driver.create(layer_id, parent)
                finish(driver.diff_size(layer_id, parent))
            for layer_id in ("box", "box-init"):
                driver.remove(layer_id)

        layer = tree(directory, "layer.tar", sizes.layer_files, sizes.layer_bytes)
        taken["apply"] = [seconds(lambda turn=turn: load(layer, f"layer{turn}")) for turn in range(sizes.rounds)]
        load(tree(directory, "small.tar", 10, 1 << 16), "small")
        taken["life of a container"] = [seconds(life) for _ in range(4 * sizes.rounds)]
        load(tree(directory, "tree.tar", sizes.tree_files, sizes.tree_files * 16), "large")
        driver.create("edited", "large")
        finish(driver.apply("edited", "large", io.BytesIO(edits(sizes))))
        taken["changes"] = [seconds(lambda: finish(driver.changes("edited", "large"))) for _ in range(sizes.rounds)]
        for number in range(sizes.layers):
            driver.create(f"many{number}", "small")

    def start() -> None:
        DeviceSet.open(home, backend).close()

    taken["start"] = [seconds(start) for _ in range(sizes.rounds)]
    return taken
