"""Golden homes: empty, made once for each kind that tests want; what tests get are clones of them.

They are kept from session to session in pytest's cache, so that the first test of a session does not wait for mke2fs.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from cowfs.devices.on_disk.options import HomeOptions
from cowfs.errors import CowfsError
from cowfs.home.api.home import open_home
from cowfs.version import VERSION


class GoldenHomes:
    """Made and cloned here.

    Args:
        cache: a directory that outlives the session; None for none.
    """

    def __init__(self, cache: Path | None) -> None:
        self._cache = cache if cache is not None and _is_private(cache) else None

    def clone(self, options: HomeOptions, target: Path) -> None:
        """Make a home like those with these options, quickly if there was one before."""
        if self._cache is None:
            _make(options, target)
            return
        golden = self._cache / _key(options)
        with suppress(CowfsError, OSError):  # there is none, or it is damaged
            _clone(golden, target)
            return
        shutil.rmtree(target, ignore_errors=True)
        _make(options, target)
        self._keep(target, golden)

    def _keep(self, home: Path, golden: Path) -> None:
        """Put a copy of an unused home into the cache, where it replaces those of other versions.

        Other workers of the session may do the same meanwhile: the home of one of them is kept, or of none.
        """
        assert self._cache is not None
        for name in os.listdir(self._cache):
            if not name.startswith(f"{VERSION}-") or name == golden.name:
                shutil.rmtree(self._cache / name, ignore_errors=True)
        made = self._cache / f"new-{os.getpid()}"
        with suppress(CowfsError, OSError):  # without a cache the next session takes longer, and no more
            _clone(home, made)
            made.rename(golden)
        shutil.rmtree(made, ignore_errors=True)


def _is_private(directory: Path) -> bool:
    """Whether only this user can put a home there, from now on."""
    with suppress(OSError):
        if directory.stat().st_uid == os.geteuid():
            directory.chmod(0o700)
            return True
    return False


def _key(options: HomeOptions) -> str:
    no_space = "error" if options.error_if_no_space else "queue"
    return f"{VERSION}-{options.data_size_bytes}-{options.metadata_size_bytes}-{options.base_size_bytes}-{no_space}"


def _make(options: HomeOptions, path: Path) -> None:
    open_home(path, create=True, options=options, durable=False).close()


def _clone(home: Path, target: Path) -> None:
    with open_home(home, read_only=True, durable=False) as source:
        source.clone(target)
