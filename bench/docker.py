"""What does Docker 20.10 feel of its storage driver: cowfs (emulated), or its own devicemapper?

Both in User-Mode Linux, on the same disk, in turns; the requests are those of Docker's API. The daemon's own work is in
all figures: bench.layers compares the drivers alone.

Expected: a container's life is two layers made, used and removed, and some fifty files that the daemon writes in either
case: little difference. An import is mostly the driver's. A start counts our plugin's process in, a Python; of the
daemon alone, as a restart is, it finds the plugin running, whereas its own driver opens its pool.
"""

from __future__ import annotations

from bench.rig.archives import Sizes, tree
from bench.rig.guests import Contender, rounds
from bench.rig.harness import Bench
from tests.kit import docker_engine

THEIRS, OURS = "devicemapper", "cowfs"
DRIVERS = (THEIRS, OURS)
QUESTIONS = ("life of a container", "import", "start", "start of the daemon alone")


def run(bench: Bench) -> None:
    docker_engine.fetch()
    sizes = Sizes(
        rounds=bench.size(3, 1),
        layer_files=bench.size(8000, 200),
        layer_bytes=bench.size(80 << 20, 2 << 20),
        tree_files=0,
        layers=bench.size(1000, 10),
    )
    tree(bench.directory, "small.tar", 10, 1 << 16)
    tree(bench.directory, "layer.tar", sizes.layer_files, sizes.layer_bytes)
    taken = rounds(bench, sizes, [Contender(driver, "bench.rig.guest_docker", driver) for driver in DRIVERS])
    for question in QUESTIONS:
        for driver in DRIVERS:
            bench.record(question, driver, "s", taken[driver][question])
