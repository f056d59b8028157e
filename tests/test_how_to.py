"""The how-tos run: their shell blocks in one shell and their Python, as root and as an ordinary user."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Account

HOW_TOS = sorted((Path(__file__).resolve().parent.parent / "docs" / "how-to").glob("*.md"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.parametrize("path", HOW_TOS, ids=lambda path: path.stem)
def test_how_to(account: Account, needs_fuse: None, path: Path) -> None:
    """Every command succeeds, and each line of the text blocks and behind `# ` after a print is printed."""
    text = path.read_text()
    script = "set -eu\n" + "".join(blocks(text, "sh"))
    assert script.count("cow") > 3
    said = account.run(["bash", "-c", script]).stdout.splitlines()
    for line in "".join(blocks(text, "text")).splitlines():
        assert line.strip() in [one.strip() for one in said], (
            f"{path.name} promises a line that was not printed: {line}"
        )
    for example in blocks(text, "python"):
        printed = account.run([sys.executable, "-c", example]).stdout.splitlines()
        expected = [line.partition("# ")[2] for line in example.splitlines() if "print(" in line]
        assert set(printed) == set(expected)
