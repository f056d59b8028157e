"""Settings that are replaced as a whole: a new file takes the old one's name.

Fault: the new file's content is not made durable before. So the name may lead to an empty file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from program import main, sync_directory, write_durably

VERSIONS = 4


def text(version: int) -> bytes:
    return f"version = {version}\n".encode() * 100


def work(directory: Path, mark: Callable[[str], None], *, mended: bool) -> None:
    for version in range(VERSIONS):
        new = directory / "settings.tmp"
        if mended:
            write_durably(new, text(version))
        else:
            new.write_bytes(text(version))
        new.rename(directory / "settings")
        sync_directory(directory)
        mark(str(version))


def check(directory: Path, marks: Sequence[str]) -> None:
    path = directory / "settings"
    if not path.exists():
        assert not marks, f"version {marks[-1]} was promised, and there are no settings"
        return
    content = path.read_bytes()
    found = [version for version in range(VERSIONS) if content == text(version)]
    assert found, f"the settings are damaged: {content[:30]!r}, {len(content)} bytes"
    assert not marks or found[0] >= int(marks[-1]), f"version {marks[-1]} was promised, and version {found[0]} is there"


if __name__ == "__main__":
    main(work, check)
