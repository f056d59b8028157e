"""What a storage driver takes for its work, asked by one client and without Docker's daemon; for bench.layers, which
runs it inside User-Mode Linux, and for cowfs also outside.

python -m bench.rig.guest_layers PHASE DRIVER DIRECTORY SIZES [PROGRAM]     prints the figures as JSON

The phase `fill` makes a home, `measure` does one round on it. SIZES is JSON, see `bench.rig.archives.Sizes`; the
archives are in the directory above; PROGRAM serves devicemapper.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.rig.archives import EDITS, Sizes, edits
from bench.rig.guest_docker import OPTIONS
from bench.rig.harness import timed
from bench.rig.plugin_client import Plugin

LIVES = 10
HELD_LAYERS = 50


class Layers:
    """A driver's process and what is done with it."""

    def __init__(self, driver: str, directory: Path, sizes: Sizes, program: str) -> None:
        self._archives = directory.parent
        self._sizes = sizes
        home = directory / "home"
        options = [*OPTIONS, "dm.override_udev_sync_check=true"] if driver == "devicemapper" else OPTIONS
        ours = [sys.executable, "-m", "cowfs", "--home", str(home), "docker", "plugin", "--socket"]
        command = [program] if driver == "devicemapper" else ours
        self.plugin = Plugin(command, Path("/run/cowfs-bench-plugin.sock"), home, options, directory / "plugin.log")

    def fill(self) -> None:
        self._load(self._archive("small.tar"), "small")
        self._load(self._archive("tree.tar"), "large")
        self.plugin.call("CreateReadWrite", ID="edited", Parent="large")
        self.plugin.apply("edited", "large", edits(self._sizes))
        for number in range(self._sizes.layers):
            self.plugin.call("CreateReadWrite", ID=f"many{number:04}", Parent="small")

    def round(self) -> dict[str, list[float]]:
        self.plugin.call("Get", ID="edited")
        self._life()
        archive = self._archive("layer.tar")
        taken = {
            "life of a layer": [timed(self._life) for _ in range(LIVES)],
            "apply": [timed(lambda: self._load(archive, "layer"))],
            "changes": [timed(self._changes)],
        }
        self.plugin.call("Remove", ID="layer")
        self.plugin.call("Put", ID="edited")
        held = [f"many{number:04}" for number in range(min(HELD_LAYERS, self._sizes.layers))]
        for layer_id in held:
            root = Path(self.plugin.call("Get", ID=layer_id)["Dir"])
            assert (root / "d0" / "f0").read_bytes()
        taken["memory"] = [self.plugin.peak_memory_bytes() / (1 << 20)]
        for layer_id in held:
            self.plugin.call("Put", ID=layer_id)
        return taken

    def _archive(self, name: str) -> bytes:
        return (self._archives / name).read_bytes()

    def _load(self, archive: bytes, layer_id: str) -> None:
        self.plugin.call("Create", ID=layer_id)
        self.plugin.apply(layer_id, "", archive)

    def _life(self) -> None:
        self.plugin.call("CreateReadWrite", ID="box", Parent="small")
        for step in ("Get", "Put", "Remove"):
            self.plugin.call(step, ID="box")

    def _changes(self) -> None:
        found = self.plugin.call("Changes", ID="edited", Parent="large")["Changes"]
        assert len(found) > EDITS  # the files and their directories


def main(phase: str, driver: str, directory: Path, sizes: Sizes, program: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    layers = Layers(driver, directory, sizes, program)
    plugin = layers.plugin
    taken: dict[str, list[float]] = {}
    try:
        plugin.start()
        if phase == "fill":
            layers.fill()
        else:
            plugin.stop()
            plugin.start()  # again, since the first one read the programs
            taken["start"] = [plugin.process_seconds + plugin.home_seconds]
            taken["opening of the home"] = [plugin.home_seconds]
            taken |= layers.round()
    finally:
        plugin.stop()
    json.dump(taken, sys.stdout)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(words[0], words[1], Path(words[2]), Sizes(**json.loads(words[3])), words[4] if len(words) > 4 else "")
