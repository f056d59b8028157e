"""Crashes of homes on the kernel's pool: processes that die at chosen steps, and guests that lose their power."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from cowfs.devices.deviceset import DeviceSet
from cowfs.pool import load_backend
from cowfs.testing.judges import recount_findings
from cowfs.uml import UmlKernel, run
from tests.conftest import REPOSITORY
from tests.devices.home_fakes import MIB, assert_whole, make_home, open_home
from tests.kit.guests import ENVIRONMENT, STEP_SECONDS
from tests.uml.guest_crash import CHECKS
from tests.uml.guest_power_cut import DONE, Model, changes, expect

IS_LONG = "COWFS_TEST_LONG" in os.environ
SEEDS = range(1, 13 if IS_LONG else 5)
MOST_LINES = 300
UNHEARD_CHANGES = 8


@pytest.fixture(scope="module")
def results(results_of: Callable[..., dict[str, str]]) -> dict[str, str]:
    return results_of("tests.uml.guest_crash")


@pytest.mark.parametrize("name", [check.__name__ for check in CHECKS])
def test_in_the_guest(results: dict[str, str], name: str) -> None:
    assert not results[name], results[name]


class PowerCut(Exception):
    """Ends the guest's kernel at once."""


@pytest.mark.parametrize("seed", SEEDS)
def test_a_power_cut_leaves_a_change_done_or_undone(uml_kernel: UmlKernel, fast_directory: Path, seed: int) -> None:
    home = fast_directory / f"home{seed}"
    with make_home(home, load_backend("emulated")) as devices:
        devices.create("first")
    cut_at = random.Random(seed).randrange(MOST_LINES)
    lines: list[str] = []
    rest = bytearray()

    def listen(data: bytes) -> None:
        rest.extend(data)
        *complete, last = rest.split(b"\n")
        rest[:] = last
        lines.extend(line.decode() for line in complete)
        if len(lines) >= cut_at:
            raise PowerCut

    errors: list[bytes] = []
    with pytest.raises(PowerCut):
        run(
            [sys.executable, "-m", "tests.uml.guest_power_cut", str(home), str(seed)],
            kernel=uml_kernel,
            cwd=REPOSITORY,
            env=ENVIRONMENT,
            silence_seconds=STEP_SECONDS,
            stdout=listen,
            stderr=errors.append,
        )
    done = lines.count(DONE)
    with open_home(home, load_backend("emulated")) as devices:
        found = contents(devices)
        # Beyond the last word that got through, it may have come a little further.
        index = list(islice(states(seed), done + UNHEARD_CHANGES)).index(found)
        assert index >= done
        taken = {record.device_id for record in devices.records()}
        assert devices.create("next").device_id not in taken
        assert_whole(devices)
    print(f"seed {seed}: power cut at '{lines[-1]}', line {cut_at}; {done} changes were told done, {index} are")


def states(seed: int) -> Iterator[Model]:
    """What a home holds at first, and after each change."""
    model: Model = {"first": (MIB, "")}
    for change in changes(seed, model):
        yield dict(model)
        expect(model, change)


def contents(devices: DeviceSet) -> Model:
    assert devices.problems == ()
    assert_whole(devices)
    found: Model = {}
    for record in devices.records():
        if record.name != "base":
            thin = devices.active.activate(record.name, read_only=True)
            text = thin.pread(128, 64).rstrip(b"\0").decode()
            devices.active.deactivate(record.name)
            found[record.name] = record.size_bytes, text
    device = devices.pool.open_metadata()
    assert recount_findings(device, strict=False) == []
    device.close()
    return found
