"""The suites in `examples` pass, as root and as an ordinary user, wherever they are copied to."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Account

REPOSITORY = Path(__file__).resolve().parent.parent
SUITES = sorted(path for path in (REPOSITORY / "examples").iterdir() if list(path.glob("test_*.py")))


@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.name)
def test_a_suite(account: Account, needs_fuse: None, suite: Path) -> None:
    copied = account.mkdir("suite")
    shutil.copytree(suite, copied, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    said = account.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=copied)
    assert " passed" in said.stdout
    assert "skipped" not in said.stdout
