"""Whether a volume may be changed: never when opened read-only, and not after an error in the middle of a change."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cowfs.errors import FilesystemError
from cowfs.ext4.library.filesystem import Filesystem, os_error


class WriteGuard:
    """Asked before every change, and given the error that ended all writing.

    Args:
        make_room: has the cache written, or committed, where it is time to.
    """

    def __init__(self, fs: Filesystem, make_room: Callable[[], None]) -> None:
        self._fs = fs
        self._make_room = make_room
        self._failure: BaseException | None = None
        self.has_changes = False

    @property
    def read_only(self) -> bool:
        return self._fs.read_only or self._failure is not None

    def begin_change(self) -> None:
        """Raises OSError (EROFS). Makes room in the cache, which may fail too, while nothing is under way."""
        if self._fs.read_only:
            raise os_error(errno.EROFS)
        self.check_usable()
        self.has_changes = True
        self._make_room()

    def check_usable(self) -> None:
        """Raises OSError: ESHUTDOWN when the volume is closed, EROFS after an error."""
        if self._fs.closed:
            raise os_error(errno.ESHUTDOWN)
        if self._failure is not None:
            raise FilesystemError(
                f"the volume is read-only since an error ({self._failure}); unmount and check it", errno=errno.EROFS
            )

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Around changes of which each only makes sense with the others: an error in between ends all writing."""
        try:
            yield
        except BaseException as error:
            if self._failure is None:
                self._failure = error
            raise
