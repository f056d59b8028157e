"""A command of the user's, without a shell: `{dir}` is a directory of the engine, `{disk}` a disk, `{home}` a home."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cowfs.benchmarks.engines.interface import Contender, Offer
from cowfs.benchmarks.meter import TIME, Meter
from cowfs.benchmarks.workloads.interface import Measure
from cowfs.errors import CowfsError, UsageError

_PLACES: Final = {"{dir}": Offer.TREE, "{disk}": Offer.DISK, "{home}": Offer.HOME}
_NAME: Final = "command"
_LINES: Final = 20


class CommandWorkload:
    """Args: text: the command; size_bytes: of the disk, or of the device that the directory is in."""

    name = _NAME
    expectation = ""
    x_unit = ""
    warms_up = False

    def __init__(self, text: str, *, size_bytes: int, environment: Mapping[str, str]) -> None:
        """Raises UsageError: it cannot be split into words, names no place, or several, or there is no such program."""
        try:
            self._words = shlex.split(text)
        except ValueError as error:
            raise UsageError(f"--command '{text}' cannot be split into words: {error}") from error
        named = [place for place in _PLACES if any(place in word for word in self._words)]
        if len(named) != 1:
            raise UsageError(
                f"--command '{text}' has to name one of {{dir}}, {{disk}} and {{home}}: where it works; "
                f"it names {' and '.join(named) or 'none'}"
            )
        if named[0] not in self._words[0] and shutil.which(self._words[0], path=environment.get("PATH")) is None:
            raise UsageError(f"--command: there is no program '{self._words[0]}'")
        (self._place,) = named
        self._text = text
        self._size_bytes = size_bytes
        self._environment = environment

    @property
    def title(self) -> str:
        return f"How long does '{self._text}' take?"

    @property
    def needs(self) -> Offer:
        return _PLACES[self._place]

    @property
    def parameters(self) -> dict[str, Any]:
        return {"command": self._text, "size_bytes": self._size_bytes}

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        """Each round begins with a new device."""

        def measure(meter: Meter) -> None:
            if self._place == "{home}":
                with contender.home() as path:
                    self._run(path, contender, meter)
                return
            contender.create(_NAME, self._size_bytes)
            try:
                with contender.disk(_NAME) if self._place == "{disk}" else contender.tree(_NAME) as path:
                    self._run(path, contender, meter)
            finally:
                contender.remove(_NAME)

        yield measure

    def _run(self, path: Path, contender: Contender, meter: Meter) -> None:
        words = [word.replace(self._place, os.fspath(path)) for word in self._words]
        with tempfile.TemporaryFile() as said:
            with meter.line("the command", TIME) as work:
                try:
                    done = subprocess.run(
                        words,
                        env=dict(self._environment),
                        stdin=subprocess.DEVNULL,
                        stdout=said,
                        stderr=subprocess.STDOUT,
                        check=False,
                    )
                except OSError as error:
                    raise CowfsError(f"'{words[0]}' cannot be run: {error.strerror}", errno=error.errno) from error
                work.requests, work.asks_unseen = 1, True
            if done.returncode:
                said.seek(0)
                lines = said.read().decode(errors="replace").splitlines()[-_LINES:]
                raise CommandFailed(shlex.join(words), done.returncode, contender.name, lines)


class CommandFailed(CowfsError):
    """`lines` is the end of what the command printed."""

    def __init__(self, command: str, status: int, contender: str, lines: list[str]) -> None:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        last = f": {lines[-1]}" if lines else " and printed nothing"
        super().__init__(f"'{command}' {how} on {contender}{last}")
        self.lines = lines
