"""`cowfs` in a guest without a process for each command, since one takes a second there."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cowfs.cli.app import run


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Cowfs:
    """`cowfs("list")`: a command on a home, in this process."""

    home: Path
    backend: str = "dmthin"

    def try_(self, *words: object) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(["--home", str(self.home), "--backend", self.backend, *map(str, words)])
        return Outcome(status, out.getvalue(), err.getvalue())

    def __call__(self, *words: object) -> Outcome:
        outcome = self.try_(*words)
        assert (outcome.status, outcome.err) == (0, ""), outcome
        return outcome

    def fails(self, status: int, *texts: str, words: tuple[object, ...]) -> str:
        outcome = self.try_(*words)
        assert outcome.status == status, outcome
        assert outcome.err.count("\n") == 1, outcome
        assert all(text in outcome.err for text in texts), outcome
        return outcome.err

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self("--json", "list").json}

    def on(self, backend: str) -> Cowfs:
        return Cowfs(self.home, backend)
