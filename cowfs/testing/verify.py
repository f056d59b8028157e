"""The emulated pool beside the kernel's, by random operations, in several guests of User-Mode Linux at a time.

    python -m cowfs.testing.verify [--seed N] [--count N] [--steps N] [--guests N] [--json]

Stops at the first difference with exit status 1, after printing a short script that shows it. Its pools are its own.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from cowfs.errors import CowfsError, UmlError
from cowfs.testing.differential import Result
from cowfs.uml import UmlKernel, find_kernel, run

_MEMORY_BYTES: Final = 1 << 30


class _Ended(Exception):
    """The rest is not needed: raised where a guest's output is taken, which ends the guest."""


def verify(
    first_seed: int,
    count: int,
    *,
    steps: int,
    kernel: UmlKernel,
    environment: Mapping[str, str],
    guests: int = 1,
    silence_seconds: float | None = None,
) -> Iterator[Result]:
    """Play seeds on the emulated and the kernel's backend; results as they come, a seed with a difference the last.

    Args:
        steps: operations for each seed.
        environment: of the guests' commands.
        guests: how many at a time.
        silence_seconds: from the result of one seed in a guest to the next.

    Raises:
        UmlError: a guest broke off, ran out of time (ETIMEDOUT), or what runs inside failed.
    """
    results: queue.SimpleQueue[Result | BaseException | None] = queue.SimpleQueue()
    ended = threading.Event()

    def play(guest: int) -> None:
        pending = bytearray()
        errors = bytearray()

        def take(data: bytes) -> None:
            if ended.is_set():
                raise _Ended
            pending.extend(data)
            *lines, rest = pending.split(b"\n")
            pending[:] = rest
            for line in lines:
                results.put(Result(**json.loads(line)))

        numbers = ["--seed", first_seed + guest, "--stride", guests, "--count", len(range(guest, count, guests))]
        command = [sys.executable, "-m", "cowfs.testing.differential", *numbers, "--steps", steps, "/run"]
        try:
            status = run(
                list(map(str, command)),
                kernel=kernel,
                env=environment,
                memory_bytes=_MEMORY_BYTES,
                silence_seconds=silence_seconds,
                stdout=take,
                stderr=errors.extend,
            )
            if status not in (0, 1) or (status == 1 and errors):
                raise UmlError(f"the comparison failed in its guest: {errors.decode(errors='replace').strip()}")
        except _Ended:
            pass
        except BaseException as error:
            results.put(error)
        results.put(None)

    threads = [threading.Thread(target=play, args=(guest,)) for guest in range(min(guests, count))]
    for thread in threads:
        thread.start()
    try:
        yield from _until_all_ended(results, len(threads))
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _until_all_ended(results: queue.SimpleQueue[Result | BaseException | None], running: int) -> Iterator[Result]:
    while running:
        result = results.get()
        if result is None:
            running -= 1
        elif isinstance(result, BaseException):
            raise result
        else:
            yield result
            if result.difference is not None:
                return


class Summary:
    """What became of many seeds.

    `operations`: how often each was played; keys as in `Result.operations`. `slow_plays`: those that did not count,
    since the machine was too slow for them. `judges`: who found the metadata clean. `difference`: the first one, as
    text.
    """

    def __init__(self) -> None:
        self.seeds = 0
        self.slow_plays = 0
        self.operations: Counter[str] = Counter()
        self.judges = ["recount", "thin_check"]
        self.difference: str | None = None

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.slow_plays += result.plays - 1
        self.operations.update(result.operations)
        if not result.thin_check:
            self.judges = ["recount"]
        self.difference = self.difference or result.difference

    def as_dict(self) -> dict[str, object]:
        return {
            "seeds": self.seeds,
            "operations": dict(sorted(self.operations.items())),
            "slow_plays": self.slow_plays,
            "judges": self.judges,
            "difference": self.difference,
        }

    def format(self) -> str:
        """A line for each verb: how often it was done, and how often it was refused with which errno."""
        done: Counter[str] = Counter()
        refused: dict[str, list[str]] = {}
        for key, count in sorted(self.operations.items()):
            verb, _, name = key.partition(" ")
            refused.setdefault(verb, [])
            if name:
                refused[verb].append(f"{name} {count}")
            else:
                done[verb] = count
        lines = [f"  {verb:<22} {done[verb]:>7}   {', '.join(refused[verb])}".rstrip() for verb in refused]
        head = f"{self.seeds} seeds, {self.operations.total()} operations, judged by {' and '.join(self.judges)}"
        if self.slow_plays:
            head += f"; {self.slow_plays} plays were too slow and played again"
        verdict = "no difference" if self.difference is None else self.difference
        return "\n".join([head, *lines, verdict])


def main() -> int:
    """An exit status: 1 when there is a difference."""
    parser = argparse.ArgumentParser(
        prog="python -m cowfs.testing.verify",
        description="Play random operations on the emulated and the kernel's pool side by side and compare.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=1, help="first seed")
    parser.add_argument("--count", type=_positive, default=1, help="how many seeds")
    parser.add_argument("--steps", type=_positive, default=200, help="operations for each seed")
    parser.add_argument("--guests", type=_positive, default=len(os.sched_getaffinity(0)), help="how many at a time")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print the sums as JSON")
    given = parser.parse_args()
    environment = dict(os.environ) | {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
    summary = Summary()
    try:
        for result in verify(
            given.seed,
            given.count,
            steps=given.steps,
            kernel=find_kernel(),
            environment=environment,
            guests=given.guests,
        ):
            summary.add(result)
            if not given.as_json:
                verdict = "no difference" if result.difference is None else "a difference"
                print(f"seed {result.seed}: {verdict}", flush=True)
    except CowfsError as error:
        parser.exit(error.exit_code, f"{parser.prog}: {error}\n")
    print(json.dumps(summary.as_dict()) if given.as_json else summary.format())
    return 1 if summary.difference else 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
