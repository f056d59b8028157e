"""The POSIX cases, over the tree view as root and as an ordinary user."""

from __future__ import annotations

import sys

import pytest

from cowfs.testing import posix

pytestmark = pytest.mark.fuse


def test_cases_over_memory(account, serve) -> None:
    served = serve(account, "memory")
    done = account.run([sys.executable, "-m", "cowfs.testing.posix", served.target], check=False)
    failures = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert not failures, "\n".join([*failures, served.logged()])
    assert done.returncode == 0, done.stderr
    passed = [line for line in done.stdout.splitlines() if line.startswith("ok ")]
    expected = set(posix.CASES) if account.uid == 0 else set(posix.CASES) - posix.PRIVILEGED
    assert len(passed) == len(expected)
    assert served.end() == 0
    assert "closed cleanly" in served.logged()
