"""Contenders in User-Mode Linux, or outside of it, which fill a folder once and are then measured in turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from bench.rig.archives import Sizes
from bench.rig.harness import Bench
from cowfs.benchmarks.figures import turns
from cowfs.errors import MissingRequirement

MEMORY = "3G"


@dataclass(frozen=True)
class Contender:
    """`python -m MODULE PHASE DRIVER DIRECTORY SIZES ARGUMENTS`, which prints the figures of a round as JSON."""

    name: str
    module: str
    driver: str
    in_guest: bool = True
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def work(self, phase: str, bench: Bench, sizes: Sizes) -> dict[str, list[float]]:
        place = [sys.executable, "-m", "cowfs", "uml", "--memory", MEMORY, "--"] if self.in_guest else []
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        directory = str(bench.directory / self.name.replace(", ", "-"))
        words = [phase, self.driver, directory, json.dumps(asdict(sizes)), *self.arguments]
        command = [*place, "env", *variables, sys.executable, "-m", self.module, *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found: dict[str, list[float]] = json.loads(done.stdout)
        return found


def rounds(bench: Bench, sizes: Sizes, contenders: Sequence[Contender]) -> dict[str, dict[str, list[float]]]:
    """The figures of all rounds by contender and question; who is first in a round is last in the next."""
    if os.geteuid() != 0:
        raise MissingRequirement("only root makes files of other owners", remedy="sudo .venv/bin/python -m bench")
    # As an installed package is: nothing is compiled at a start.
    subprocess.run([sys.executable, "-m", "compileall", "-q", "cowfs", "backends", "bench"], check=True)
    taken: dict[str, dict[str, list[float]]] = {contender.name: defaultdict(list) for contender in contenders}
    for contender in contenders:
        contender.work("fill", bench, sizes)
    for number, contender in turns(contenders, range(sizes.rounds)):
        bench.watcher.progress(bench.question.name, contender.name, number, sizes.rounds)
        for question, values in contender.work("measure", bench, sizes).items():
            taken[contender.name][question] += values
    return taken
