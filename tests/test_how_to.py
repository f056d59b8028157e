"""The how-tos run: their shell blocks in one shell and their Python, as an ordinary user and, most of them, as root.

One whose commands need what no machine has any more, a dead daemon's directory, shows them as `console` blocks.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Account


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


DIRECTORY = Path(__file__).resolve().parent.parent / "docs" / "how-to"
HOW_TOS = [path for path in sorted(DIRECTORY.glob("*.md")) if blocks(path.read_text(), "sh")]
COMPUTING = ("compare-engines", "test-with-pytest")  # much of the processor's time, and nothing that is for root
CASES = [
    pytest.param(user, path, id=f"{user}-{path.stem}")
    for user in ("root", "ordinary")
    for path in HOW_TOS
    if user == "ordinary" or path.stem not in COMPUTING
]


def test_the_how_tos_that_compute_are_there() -> None:
    assert {path.stem for path in HOW_TOS}.issuperset(COMPUTING)


@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.parametrize(("account", "path"), CASES, indirect=["account"])
def test_how_to(account: Account, needs_fuse: None, path: Path, request: pytest.FixtureRequest) -> None:
    """Every command succeeds, and each line of the text blocks and behind `# ` after a print is printed."""
    text = path.read_text()
    script = "".join(blocks(text, "sh"))
    if "--in-uml" in script:
        request.getfixturevalue("uml_kernel")
    if "$REGISTRY" in script:
        script = f"export REGISTRY={request.getfixturevalue('debian_registry')}\n{script}"
    assert script.count("cow") > 3
    said = account.run_script(script).splitlines()
    for line in "".join(blocks(text, "text")).splitlines():
        assert line.strip() in [one.strip() for one in said], (
            f"{path.name} promises a line that was not printed: {line}"
        )
    for example in blocks(text, "python"):
        printed = account.run(["python", "-c", example]).stdout.splitlines()
        expected = [line.partition("# ")[2] for line in example.splitlines() if "print(" in line]
        assert set(printed) == set(expected)
