"""How long do opening and listing a home take, when it has many devices?

Expected: opening reads one small file per device (30 us each) and what the pool has of its thins, so 0.05 s for 1000;
a list looks at the metadata nodes that each device has alone.
"""

from __future__ import annotations

import itertools

from bench.rig.harness import Bench, timed
from cowfs.devices import opening
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.pool import load_backend

LIMIT_SECONDS = 0.3


def run(bench: Bench) -> None:
    backend = load_backend("emulated")
    options = HomeOptions(base_size_bytes=64 << 20, metadata_size_bytes=256 << 20, durable=False)
    home = bench.directory / "home"
    numbers = itertools.count()
    opening.make_home(home, backend, options).close()
    for count in (bench.size(1000, 50), bench.size(2000, 100)):
        with opening.open_home(home, backend, opening.OpenOptions(durable=False)) as devices:
            while len(devices.records()) <= count:
                devices.create(f"layer-{next(numbers)}")

        def open_home() -> float:
            return timed(lambda: opening.open_home(home, backend, opening.OpenOptions(durable=False)).close())

        def list_devices() -> float:
            with opening.open_home(home, backend, opening.OpenOptions(durable=False)) as devices:
                return timed(lambda: devices.reports.usage(record.name for record in devices.records()))

        (opened,) = bench.compare(f"open a home of {count} devices", {"cowfs": open_home}, unit="s").values()
        bench.compare(f"figures of {count} devices", {"cowfs": list_devices}, unit="s")
    bench.goal(f"seconds to open {count} devices", opened.median, at_most=LIMIT_SECONDS)
