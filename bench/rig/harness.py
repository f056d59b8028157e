"""What all of these programs share: questions with goals, and their JSON.

Rounds in turns, medians, spreads and the look at the machine are those of `cowfs bench` (`cowfs.benchmarks`).

Goals are judged only where nothing else used the machine: before each question the processors that are busy are counted
while this program sleeps. What a switch to another process takes is measured too: of a request through FUSE that is
often the most, and it depends on the machine and on the processor that the kernel chooses.

A benchmark is a module with a docstring (the question, and what arithmetic expects) and `run(bench)`. Contenders of one
question are measured side by side, round by round, so that a noisy machine is noisy to all of them:

    found = bench.compare("overwrite", {"plain file": run_plain, "thin device": run_thin}, unit="MB/s")
    bench.goal_ratio("thin device / plain file", found["thin device"], found["plain file"], at_least=0.8)
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cowfs.benchmarks.figures import median_of, ratios_of, spread_of, turns
from cowfs.benchmarks.machine import QUIET_PROCESSORS, busy_processors, switch_seconds

ROUNDS = 5
QUICK_ROUNDS = 2
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Measurement:
    """All rounds of one contender. `spread` is (largest - smallest) / median."""

    question: str
    contender: str
    unit: str
    values: list[float]
    median: float
    spread: float


@dataclass(frozen=True)
class Goal:
    """A bound on a figure; `met` is None where it was not judged: in quick runs, whose sizes prove nothing, and on a
    machine that others used.

    A ratio is the median of those of the rounds, and `spread` theirs: (largest - smallest) / median.
    """

    name: str
    value: float
    bound: str
    met: bool | None
    spread: float | None = None


@dataclass
class Bench:
    """One benchmark program's surroundings and results.

    Args:
        directory: scratch space, removed afterwards; everything that is compared lies on this one file system.
        quick: small sizes and few rounds, to see that the program runs.
        part: of the questions; 0: all of them.
    """

    name: str
    directory: Path
    quick: bool
    part: int = 0
    measurements: list[Measurement] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    others_processors: float = 0.0
    switch_seconds: float = 0.0

    def introduce(self) -> None:
        """Say at the top what the machine is like."""
        self.switch_seconds = switch_seconds()
        print(
            f"  others use {self.look_around():.1f} of {os.cpu_count()} processors, "
            f"a switch to another process takes {self.switch_seconds * 1e6:.1f} us",
            flush=True,
        )

    def look_around(self) -> float:
        """Processors that others use now. The most that was seen counts for all goals that follow."""
        found = busy_processors(LOOK_SECONDS)
        self.others_processors = max(self.others_processors, found)
        return found

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def compare(
        self,
        question: str,
        contenders: Mapping[str, Callable[[], float]],
        *,
        unit: str,
        rounds: int = ROUNDS,
        warm_up: bool = True,
    ) -> dict[str, Measurement]:
        """Ask each contender for one figure per round, in turn.

        The first round's order is the mapping's, the next one's is turned round, and so on: being first is shared.
        """
        rounds = self.size(rounds, QUICK_ROUNDS)
        self.look_around()
        if warm_up:
            for contender in contenders.values():
                contender()
        values: dict[str, list[float]] = {name: [] for name in contenders}
        for _, name in turns(list(contenders), rounds):
            values[name].append(contenders[name]())
        print(f"  {question} [{unit}]")
        return {name: self.record(question, name, unit, values[name]) for name in contenders}

    def figure(self, question: str, value: float, unit: str) -> float:
        """A figure that has no rounds, such as a peak of memory."""
        print(f"  {question} [{unit}]")
        return self.record(question, "cowfs", unit, [value]).median

    def goal_ratio(
        self,
        name: str,
        above: Measurement,
        below: Measurement,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Compare a ratio with its bound: round by round, so that what slows both of them down cancels out."""
        ratios = ratios_of(above.values, below.values)
        self.goal(name, median_of(ratios), at_least=at_least, at_most=at_most, spread=spread_of(ratios))

    def goal(
        self,
        name: str,
        value: float,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        spread: float | None = None,
    ) -> None:
        """Compare a figure with its bound."""
        bound = " and ".join(
            f"{sign} {limit:g}" for sign, limit in ((">=", at_least), ("<=", at_most)) if limit is not None
        )
        holds = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        is_alone = self.others_processors <= QUIET_PROCESSORS
        self.goals.append(Goal(name, value, bound, holds if is_alone and not self.quick else None, spread))
        if self.quick:
            verdict = "not judged in a quick run"
        elif not is_alone:
            verdict = f"not judged: others use {self.others_processors:.1f} processors"
        else:
            verdict = "met" if holds else "MISSED"
        about = "" if spread is None else f" (spread {spread:.0%})"
        print(f"  goal: {name} = {value:.3g}{about}, wanted {bound}: {verdict}")

    def record(self, question: str, contender: str, unit: str, values: list[float]) -> Measurement:
        """The rounds of one contender that were measured elsewhere."""
        found = Measurement(question, contender, unit, values, median_of(values), spread_of(values))
        self.measurements.append(found)
        print(f"    {contender:<28} {found.median:>12,.4g}   spread {found.spread:.0%}   of {len(values)}")
        return found


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


@contextmanager
def scratch(parent: str | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="cowfs-bench-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def machine() -> dict[str, object]:
    """Where a result comes from."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }


def write_result(bench: Bench, folder: Path) -> Path:
    """One JSON file per program and run."""
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    stem = f"{bench.name}-{about['commit']}"
    paths = (folder / f"{stem}{'' if n == 1 else f'-{n}'}.json" for n in itertools.count(1))
    path = next(path for path in paths if not path.exists())
    document = {
        "name": bench.name,
        "quick": bench.quick,
        **about,
        "others_processors": bench.others_processors,
        "switch_us": bench.switch_seconds * 1e6,
        "measurements": [asdict(measurement) for measurement in bench.measurements],
        "goals": [asdict(goal) for goal in bench.goals],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path
