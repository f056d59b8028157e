"""The differential run in User-Mode Linux: several guests side by side, their results added up.

`cowfs verify` is this as a command.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from cowfs.errors import UmlError
from cowfs.testing.differential import Result
from cowfs.uml import UmlKernel, run

_MEMORY_BYTES: Final = 1 << 30


class _Ended(Exception):  # noqa: N818
    """Nobody wants the rest: raised where a guest's output is taken, which ends the guest."""


def verify(
    first_seed: int,
    count: int,
    *,
    steps: int,
    kernel: UmlKernel,
    environment: Mapping[str, str],
    guests: int = 1,
    timeout_seconds: float | None = None,
) -> Iterator[Result]:
    """Play seeds on the emulated and the kernel's backend; results as they come, a seed with a difference the last.

    Args:
        steps: operations for each seed.
        environment: of the guests' commands.
        guests: how many at a time.
        timeout_seconds: for each guest.

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
                timeout_seconds=timeout_seconds,
                stdout=take,
                stderr=errors.extend,
            )
            if status not in (0, 1) or (status == 1 and errors):
                raise UmlError(f"the comparison failed in its guest: {errors.decode(errors='replace').strip()}")
        except _Ended:
            pass
        except BaseException as error:  # noqa: BLE001
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


def add_up(results: list[Result]) -> Counter[str]:
    """How often each operation was played in all; keys as in `Result.operations`."""
    total: Counter[str] = Counter()
    for result in results:
        total.update(result.operations)
    return total


def table(operations: Mapping[str, int]) -> str:
    """One line for each verb: how often it was done, and how often it was refused with which errno."""
    done: dict[str, int] = {}
    refused: dict[str, list[str]] = {}
    for key, count in sorted(operations.items()):
        verb, _, name = key.partition(" ")
        done.setdefault(verb, 0)
        if name:
            refused.setdefault(verb, []).append(f"{name} {count}")
        else:
            done[verb] = count
    return "\n".join(f"  {verb:<22} {done[verb]:>7}   {', '.join(refused.get(verb, []))}".rstrip() for verb in done)
