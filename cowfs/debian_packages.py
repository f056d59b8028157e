"""Packages of Debian unpacked into a folder, without root and without touching the system's own.

What a package would do to a system beyond putting its files there (services, users, links) is not done.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cowfs.errors import MissingRequirement

_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_TIMEOUT_SECONDS: Final = 600
_TOOLS: Final = ("apt-get", "dpkg-deb")


def unpack(
    packages: Sequence[str], target: Path, *, release: str = "", is_whole: Callable[[Path], bool] = Path.is_dir
) -> None:
    """Download packages and unpack all of them into `target`, which appears whole or not at all.

    Args:
        release: of Debian, `trixie`; the system's own when empty.
        is_whole: whether a folder holds what it must; an older one that does not is replaced.

    Raises:
        MissingRequirement: no apt-get or dpkg-deb here, nothing to download from, or a package without what it needs.
    """
    for tool in _TOOLS:
        if shutil.which(tool) is None:
            names = " ".join(packages)
            raise MissingRequirement(f"{tool} is not here, so {names} cannot be unpacked; install it by other means")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as name:
        folder = Path(name)
        unpacked = folder / "root"
        for package in _download(packages, folder, release):
            _call(packages, ["dpkg-deb", "-x", str(package), str(unpacked)], folder)
        if not is_whole(unpacked):
            raise MissingRequirement(f"{' '.join(packages)}: the packages do not hold what they should")
        try:
            unpacked.rename(target)
        except OSError:
            # Another process was faster; its result is as good.
            if not is_whole(target):
                shutil.rmtree(target)
                unpacked.rename(target)


def _download(packages: Sequence[str], folder: Path, release: str) -> list[Path]:
    """The packages' files, by the system's package lists or, where these do not do, by lists of our own."""
    options: list[str] = []
    if release:
        sources = folder / "sources.list"
        sources.write_text(f"deb [signed-by={_KEYRING}] http://deb.debian.org/debian {release} main\n")
        (folder / "status").touch()
        options = [
            *("-o", f"Dir::Etc::SourceList={sources}", "-o", "Dir::Etc::SourceParts=/dev/null"),
            *("-o", f"Dir::State::Status={folder}/status"),
        ]
    else:
        options = ["-o", "Dir::State::Status=/var/lib/dpkg/status"]
        try:
            _call(packages, ["apt-get", "download", "-q", *packages], folder)
            return sorted(folder.glob("*.deb"))
        except MissingRequirement:
            pass
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    options += ["-o", f"Dir::State={folder}/state", "-o", f"Dir::Cache={folder}/cache"]
    options += ["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="]
    _call(packages, ["apt-get", "update", "-q", *options], folder)
    _call(packages, ["apt-get", "download", "-q", *options, *packages], folder)
    return sorted(folder.glob("*.deb"))


def _call(packages: Sequence[str], arguments: list[str], folder: Path) -> None:
    result = subprocess.run(
        arguments,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_SECONDS,
    )
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines() or [f"exit status {result.returncode}"]
        names = " ".join(packages)
        raise MissingRequirement(
            f"{names} cannot be unpacked: {' '.join(arguments[:2])} failed: {lines[-1]}",
            remedy=f"sudo apt-get update && sudo apt-get install {names}",
        )
