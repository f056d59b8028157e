"""What Docker's daemon takes for the work of its storage driver; run inside User-Mode Linux, for bench.docker.

python -m bench.rig.guest_docker PHASE DRIVER DIRECTORY SIZES      prints the seconds as JSON

The phase `fill` makes images and containers, `measure` does one round among them. SIZES is JSON, see
`bench.rig.archives.Sizes`; the archives are in the directory above.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.rig.archives import Sizes
from bench.rig.harness import timed
from tests.kit.docker_engine import DockerEngine, storage_driver

OPTIONS = ["dm.loopdatasize=40G", "dm.loopmetadatasize=512M", "dm.basesize=10G"]
LIVES = 10
LAYERS_PER_CONTAINER = 2


class Daemon:
    """A daemon on one storage driver, which can be restarted."""

    def __init__(self, driver: str, directory: Path) -> None:
        self._driver, self._directory = driver, directory
        self._running = ExitStack()
        self._engine: DockerEngine | None = None

    def start(self) -> None:
        arguments = self._running.enter_context(storage_driver(self._driver, self._directory, OPTIONS))
        self._engine = self._running.enter_context(DockerEngine(self._directory, arguments))

    def start_daemon(self) -> None:
        """Again, where a plugin has been left running."""
        assert self._engine is not None
        self._engine.start()

    def stop_daemon(self) -> None:
        assert self._engine is not None
        self._engine.stop()

    def stop(self) -> None:
        self._running.close()

    def load(self, archive: str, image: str) -> None:
        with (self._directory.parent / archive).open("rb") as body:
            self._request("POST", f"/images/create?fromSrc=-&repo={image}", body, "application/x-tar")

    def create(self) -> str:
        body = json.dumps({"Image": "small", "Cmd": ["/none"]}).encode()
        made = self._request("POST", "/containers/create", body)
        container: str = json.loads(made)["Id"]
        return container

    def life(self) -> None:
        self._request("DELETE", f"/containers/{self.create()}")

    def remove_image(self, image: str) -> None:
        self._request("DELETE", f"/images/{image}")

    @property
    def _request(self) -> Callable[..., bytes]:
        assert self._engine is not None
        return self._engine.request


def main(phase: str, driver: str, directory: Path, sizes: Sizes) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    daemon = Daemon(driver, directory)
    taken: dict[str, list[float]] = {}
    try:
        daemon.start()
        if phase == "fill":
            daemon.load("small.tar", "small")
            for _ in range(sizes.layers // LAYERS_PER_CONTAINER):
                daemon.create()
        else:
            daemon.stop()
            taken["start"] = [timed(daemon.start)]  # again, since the first one read the programs
            daemon.stop_daemon()
            taken["start of the daemon alone"] = [timed(daemon.start_daemon)]
            daemon.life()
            taken["life of a container"] = [timed(daemon.life) for _ in range(LIVES)]
            taken["import"] = [timed(lambda: daemon.load("layer.tar", "layer"))]
            daemon.remove_image("layer")
    finally:
        daemon.stop()
    json.dump(taken, sys.stdout)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(words[0], words[1], Path(words[2]), Sizes(**json.loads(words[3])))
