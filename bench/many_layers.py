"""Does a layer cost more among two thousand others, or on top of a chain of 128?

Expected: hardly. A snapshot is one more reference to a tree, and a record a separate file; what grows with the number
of layers is a look through the records in memory (1 ms for 2000 at a removal), and the metadata of the pool by a few
blocks a layer. Each layer of a chain has a separate tree, so the deepest one reads as the first.
"""

from __future__ import annotations

import io
import resource
import statistics
import tarfile
from contextlib import closing
from functools import partial

from bench.rig.harness import Bench, timed
from cowfs.devices import opening
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.layers.driver import LayerDriver
from cowfs.layers.roots import find_root
from cowfs.pool import load_backend
from cowfs.steps import finish
from cowfs.volumes import Volumes

EDGE = 50  # layers at either end that are compared
FILE_BYTES = 1000
RATIO_MAX = 2.0


def run(bench: Bench) -> None:
    home = bench.directory / "home"
    options = HomeOptions(data_size_bytes=20 << 30, metadata_size_bytes=256 << 20, base_size_bytes=1 << 30)
    backend = load_backend("emulated")
    with closing(opening.make_home(home, backend, options)) as devices:
        volumes = Volumes(devices)
        driver = LayerDriver(devices, volumes)
        stack_layers(bench, driver, volumes, bench.size(128, 8))
        add_layers(bench, driver, bench.size(2000, 120))
    bench.compare(
        "open a home of as many", {"cowfs": lambda: timed(lambda: opening.open_home(home, backend).close())}, unit="s"
    )
    bench.figure("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB")


def stack_layers(bench: Bench, driver: LayerDriver, volumes: Volumes, depth: int) -> None:
    names = [f"chain{number:03}" for number in range(depth)]

    def stack(name: str, parent: str | None) -> None:
        driver.create(name, parent)
        finish(driver.apply(name, parent, io.BytesIO(one_file(name))))

    taken = [timed(partial(stack, name, parent)) for name, parent in zip(names, [None, *names[:-1]], strict=True)]
    part = depth // 4
    bench.record("create and apply", f"the first {part}", "s", taken[:part])
    bench.record("create and apply", f"the last {part} of {depth}", "s", taken[-part:])
    at_most(bench, f"last / first of a chain of {depth}", taken[-part:], taken[:part])

    with volumes.opened(names[-1]) as volume:
        root = find_root(volume).inode
        for name in names:
            file = volume.lookup(root, name.encode()).inode
            assert volume.read(file, 0, FILE_BYTES) == name.encode().ljust(FILE_BYTES)
    for name, parent in ((names[1], names[0]), (names[-1], names[-2])):
        values = [timed(partial(changed, driver, name, parent)) for _ in range(EDGE)]
        bench.record("changes", f"of {name}", "s", values)


def changed(driver: LayerDriver, name: str, parent: str) -> None:
    assert [change.path for change in finish(driver.changes(name, parent))] == [b"/" + name.encode()]


def add_layers(bench: Bench, driver: LayerDriver, count: int) -> None:
    names = [f"layer{number:04}" for number in range(count)]
    made = [timed(partial(driver.create, name, "chain000")) for name in names]
    bench.record("create", f"the first {EDGE}", "s", made[:EDGE])
    bench.record("create", f"the last {EDGE} of {count}", "s", made[-EDGE:])
    at_most(bench, f"create, last / first of {count}", made[-EDGE:], made[:EDGE])
    removed = [timed(partial(driver.remove, name)) for name in names[:EDGE]]
    bench.record("remove", f"of {count}", "s", removed)


def at_most(bench: Bench, name: str, values: list[float], others: list[float]) -> None:
    bench.goal(name, statistics.median(values) / statistics.median(others), at_most=RATIO_MAX)


def one_file(name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        item = tarfile.TarInfo(name)
        item.size = FILE_BYTES
        tar.addfile(item, io.BytesIO(name.encode().ljust(FILE_BYTES)))
    return out.getvalue()
