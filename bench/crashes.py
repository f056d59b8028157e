"""How many crash states are opened in a second, with a check that reads one small file? And what does recording cost?

A state is a snapshot, the writes since, the replay of ext4's journal at the first look, and its removal. At least 30 a
second are available. A workload of small files that are synced may take 1.5 times as long while it is recorded.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cowfs
from bench.rig.harness import Bench, timed
from cowfs.crashes.explorer import Explorer
from cowfs.recording.recorder import Model

STATES_PER_SECOND = 30.0
OVERHEAD = 1.5
_MODELS: tuple[Model, ...] = ("ext4", "posix")
_OPTIONS = cowfs.HomeOptions(
    data_size_bytes=8 << 30, metadata_size_bytes=64 << 20, base_size_bytes=256 << 20, min_free_percent=0
)


def run(bench: Bench) -> None:
    with (
        cowfs.open_home(bench.directory / "home", create=True, options=_OPTIONS, durable=False) as home,
        home.mount() as mount_point,
    ):
        _states(bench, home, mount_point)
        _recording(bench, home, mount_point)


def _work(path: Path, files: int) -> None:
    for number in range(files):
        with (path / f"file-{number % 50}").open("wb") as file:
            file.write(bytes([number % 256]) * 20_000)
            file.flush()
            if number % 10 == 0:
                os.fsync(file.fileno())


def _states(bench: Bench, home: cowfs.Home, mount_point: Path) -> None:
    count = bench.size(100, 10)

    def per_second(model: Model) -> float:
        with Explorer.started(home, mount_point, "states", model=model, seed=1) as explorer:
            with explorer.record() as path:
                _work(path, 40)
            states = explorer.plan(count)

            def explore() -> None:
                for one in states:
                    with explorer.shown(explorer.crash_state(one)) as path:
                        (path / "file-0").exists()

            return len(states) / timed(explore)

    for model in _MODELS:
        question = f"crash states, model {model}"
        (rate,) = bench.compare(question, {"states": partial(per_second, model)}, unit="/s").values()
        bench.goal(f"{question}, a second", rate.median, at_least=STATES_PER_SECOND)


def _recording(bench: Bench, home: cowfs.Home, mount_point: Path) -> None:
    files = bench.size(600, 20)
    numbers = itertools.count()

    def seconds(model: Model | None) -> float:
        name = f"work-{next(numbers)}"
        if model is None:
            home.create(name)
            taken = timed(lambda: _work(mount_point / name, files))
            home.remove(name)
            return taken
        with Explorer.started(home, mount_point, name, model=model) as explorer, explorer.record() as path:
            return timed(lambda: _work(path, files))

    contenders: dict[str, Callable[[], float]] = {"not recorded": partial(seconds, None)}
    contenders |= {f"recorded, {model}": partial(seconds, model) for model in _MODELS}
    bare, *recorded = bench.compare("a workload of small files", contenders, unit="s").values()
    for model, taken in zip(_MODELS, recorded, strict=True):
        bench.goal_ratio(f"recorded, {model} / not recorded", taken, bare, at_most=OVERHEAD)
