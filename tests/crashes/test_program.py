"""How a check of `crash-test` ends, and what is kept of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from cowfs.crashes.explorer import Explorer
from cowfs.crashes.program import Command, CrashTest, Verdict


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("echo sound", Verdict(0, "sound\n")),
        ("echo lost; exit 3", Verdict(3, "lost\nthe check ended with exit status 3\n")),
        ("exit 3", Verdict(3, "the check ended with exit status 3\n")),
        ("printf half; kill -BUS $$", Verdict(-7, "half\nthe check ended with signal 7 (SIGBUS)\n")),
    ],
)
def test_what_a_check_printed_and_how_it_ended(tmp_path: Path, code: str, verdict: Verdict) -> None:
    command = Command.parsed(f"sh -c '{code}' {{}}", "--check")
    test = CrashTest(cast(Explorer, None), command, command, environment=os.environ)
    assert test._checked(tmp_path, []) == verdict
