"""What Docker's daemon takes for the work of its storage driver; run inside User-Mode Linux, for bench.docker.

python -m bench.guest_docker DRIVER DIRECTORY SIZES      SIZES is JSON, see `Sizes`; prints the seconds as JSON
"""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cowfs.testing.docker_engine import DockerEngine, storage_driver

OPTIONS = ["dm.loopdatasize=40G", "dm.loopmetadatasize=512M", "dm.basesize=10G"]
FILES_PER_DIRECTORY = 100
EDITS = 10


@dataclass(frozen=True)
class Sizes:
    """How much of everything: the layer that is applied, the tree in which changes are looked for, layers at start."""

    rounds: int
    layer_files: int
    layer_bytes: int
    tree_files: int
    layers: int


def tree(directory: Path, name: str, files: int, total_bytes: int) -> Path:
    """A tar archive of files of equal size, a hundred to a directory."""
    path = directory / name
    data = random.Random(name).randbytes(total_bytes // files)
    with tarfile.open(path, "w") as tar:
        for number in range(files):
            if number % FILES_PER_DIRECTORY == 0:
                item = tarfile.TarInfo(f"d{number // FILES_PER_DIRECTORY}")
                item.type, item.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(item)
            item = tarfile.TarInfo(f"d{number // FILES_PER_DIRECTORY}/f{number}")
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    return path


def edits(sizes: Sizes) -> bytes:
    """A tar archive of ten of the tree's files with other content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in random.Random(1).sample(range(sizes.tree_files), EDITS):
            item = tarfile.TarInfo(f"d{number // FILES_PER_DIRECTORY}/f{number}")
            item.size, item.mtime = 4, 1_700_000_000
            tar.addfile(item, io.BytesIO(b"edit"))
    return out.getvalue()


class Driver:
    """A daemon on one storage driver, which can be restarted."""

    def __init__(self, name: str, directory: Path) -> None:
        self._name, self._directory = name, directory
        self._running = ExitStack()
        self.engine: DockerEngine | None = None

    def start(self) -> None:
        arguments = self._running.enter_context(storage_driver(self._name, self._directory, OPTIONS))
        self.engine = self._running.enter_context(DockerEngine(self._directory, arguments))

    def stop(self) -> None:
        self._running.close()

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        assert self.engine is not None
        return self.engine.request(method, path, body)

    def load(self, archive: Path, image: str) -> None:
        assert self.engine is not None
        with archive.open("rb") as body:
            self.engine.request("POST", f"/images/create?fromSrc=-&repo={image}", body, "application/x-tar")

    def create(self, image: str) -> str:
        made = self.request("POST", "/containers/create", json.dumps({"Image": image, "Cmd": ["/none"]}).encode())
        container: str = json.loads(made)["Id"]
        return container

    def remove(self, container: str) -> None:
        self.request("DELETE", f"/containers/{container}")


def seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def main(name: str, directory: Path, sizes: Sizes) -> None:
    directory.mkdir(parents=True)
    taken: dict[str, list[float]] = {}
    driver = Driver(name, directory)
    driver.start()
    try:
        small = tree(directory, "small.tar", 10, 1 << 16)
        layer = tree(directory, "layer.tar", sizes.layer_files, sizes.layer_bytes)
        large = tree(directory, "tree.tar", sizes.tree_files, sizes.tree_files * 16)

        taken["apply"] = []
        for turn in range(sizes.rounds):
            taken["apply"].append(seconds(lambda turn=turn: driver.load(layer, f"layer{turn}")))
            driver.request("DELETE", f"/images/layer{turn}")

        driver.load(small, "small")
        driver.remove(driver.create("small"))
        taken["life of a container"] = [
            seconds(lambda: driver.remove(driver.create("small"))) for _ in range(4 * sizes.rounds)
        ]

        driver.load(large, "large")
        container = driver.create("large")
        driver.request("PUT", f"/containers/{container}/archive?path=/", edits(sizes))
        found: list[bytes] = []
        taken["changes"] = [
            seconds(lambda: found.append(driver.request("GET", f"/containers/{container}/changes")))
            for _ in range(sizes.rounds + 1)
        ][1:]
        assert len(json.loads(found[-1])) > EDITS

        for _ in range(sizes.layers // 2):  # each has two layers
            driver.create("small")
        taken["start"] = []
        for _ in range(sizes.rounds):
            driver.stop()
            taken["start"].append(seconds(driver.start))
    finally:
        driver.stop()
    json.dump(taken, sys.stdout)


if __name__ == "__main__":
    driver_name, folder, text = sys.argv[1:]
    main(driver_name, Path(folder), Sizes(**json.loads(text)))
