"""Changes a home on the kernel's pool until the guest loses its power: `python -m tests.uml.guest_power_cut HOME SEED`.

It says each operation on the home's files before it begins, and when a change is done.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from cowfs.devices.deviceset import DeviceSet
from cowfs.pool import load_backend
from tests.devices.home_fakes import MIB, DyingOs, Steps, open_home

MOST_DEVICES = 6
DONE = "done"
Model: TypeAlias = dict[str, tuple[int, str]]
"""Size and text of each device by name."""


class Change(NamedTuple):
    """What is done to a device; `number` makes its name or its text."""

    kind: str
    name: str
    number: int


def changes(seed: int, model: Model) -> Iterator[Change]:
    """Sensible changes without end, as they depend on the model at each moment."""
    chance = random.Random(seed)
    number = 0
    while True:
        number += 1
        name = chance.choice(sorted(model))
        kinds = ["snapshot", "apply", "grow"] if len(model) < MOST_DEVICES else ["apply", "remove"]
        yield Change(chance.choice([*kinds, "remove"] if len(model) > 1 else kinds[:2]), name, number)


def expect(model: Model, change: Change) -> None:
    """Do a change to the model."""
    size, text = model[change.name]
    if change.kind == "snapshot":
        model[f"device-{change.number}"] = model[change.name]
    elif change.kind == "apply":
        model[change.name] = size, f"text {change.number}"
    elif change.kind == "grow":
        model[change.name] = size + MIB, text
    else:
        del model[change.name]


def carry_out(devices: DeviceSet, change: Change) -> None:
    if change.kind == "snapshot":
        devices.create(f"device-{change.number}", parent=change.name)
    elif change.kind == "apply":
        with devices.replacing(change.name) as thin:
            thin.pwrite(128, f"text {change.number}".encode().ljust(64, b"\0"))
    elif change.kind == "grow":
        devices.resize(change.name, devices.record(change.name).size_bytes + MIB)
    else:
        devices.remove(change.name)


class Saying(Steps):
    def step(self, label: str) -> None:
        print(f"step: {label}", flush=True)


def main(home: str, seed: int) -> None:
    with open_home(Path(home), load_backend("dmthin"), system=DyingOs(Saying())) as devices:
        model: Model = {record.name: (record.size_bytes, "") for record in devices.records() if record.name != "base"}
        for change in changes(seed, model):
            carry_out(devices, change)
            print(DONE, flush=True)
            expect(model, change)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
