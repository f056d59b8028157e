"""What the sinks of the host and of a tree have in common.

Rules, as `cp -a` has them. A directory that meets a directory is merged with it; anything else replaces what is
none, and neither replaces the other. An existing symbolic link is replaced, never followed. What cannot be made is
reported, all below it is passed over, and the rest is copied; when nothing more can be written, the copy ends.
"""

from __future__ import annotations

import errno
import stat
from abc import abstractmethod
from collections.abc import Iterable
from typing import Final

import msgspec

from cowfs.copying.records import Data, End, Link, Node, Problem, Record
from cowfs.errors import CopyError, OutOfDataSpace, OutOfMetadataSpace, PoolError, UsageError

NOT_REPLACED: Final = "a directory and a file do not replace each other"
_PROBLEMS_KEPT: Final = 100
_ENDS_THE_COPY: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESHUTDOWN, errno.EBADF)


class Copied(msgspec.Struct, frozen=True):
    """What was copied. `problems`: a line for each file that was not, of which the first hundred are here.

    `left_out`: special files that only root may make, as many as in `problems`. `attributes_left_out` counts extended
    attributes that the destination does not take, or only from root.
    """

    files: int
    size_bytes: int
    problems: list[str]
    problem_count: int
    left_out: list[str]
    left_out_count: int
    attributes_left_out: int


class Sink:
    """Makes what records say. Give it every record of one source, then call `finish`."""

    def __init__(self) -> None:
        self.attributes_left_out = 0
        self._files = self._size_bytes = 0
        self._problems: list[str] = []
        self._left_out: list[str] = []
        self._problem_count = self._left_out_count = 0
        self._passing_over = 0  # how many of the nodes that are open are passed over
        self._path: list[bytes] = []  # of the nodes that are open

    def take(self, record: Record) -> None:
        """Make what one record says.

        Raises:
            OSError: nothing more can be written, for the whole copy; the message names the file.
            UsageError: the records do not go together.
        """
        if isinstance(record, Problem):
            self.report(record.text)
        elif self._passing_over:
            self._pass_over(record)
        elif isinstance(record, Node | Link):
            self._take_name(record)
        elif not self._path:
            raise UsageError("not a batch of files: a part of a file before its beginning")
        elif isinstance(record, Data):
            self._take_data(record)
        else:
            self._take_end(record)

    def take_all(self, records: Iterable[Record]) -> None:
        for record in records:
            self.take(record)

    def finish(self) -> Copied:
        """What was copied."""
        return Copied(
            self._files,
            self._size_bytes,
            self._problems,
            self._problem_count,
            self._left_out,
            self._left_out_count,
            self.attributes_left_out,
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of regular files until now."""
        return self._size_bytes

    def report(self, text: str) -> None:
        self._problem_count += 1
        if len(self._problems) < _PROBLEMS_KEPT:
            self._problems.append(text)

    def leave_out(self, name: bytes) -> None:
        self._left_out_count += 1
        if len(self._left_out) < _PROBLEMS_KEPT:
            self._left_out.append(self.where(name))

    # What a sink does.

    @abstractmethod
    def where(self, name: bytes) -> str:
        """What a name in the directory that is open is called in messages."""
        ...

    @abstractmethod
    def make(self, node: Node) -> bool:
        """Make a node; an open one is what follows is for. False: it was left out. Raises OSError."""
        ...

    @abstractmethod
    def link(self, link: Link) -> None:
        """Raises OSError."""
        ...

    @abstractmethod
    def write(self, data: Data) -> None:
        """Raises OSError."""
        ...

    @abstractmethod
    def end(self, *, is_whole: bool) -> None:
        """Close what is open; a file that is not whole is removed. Raises OSError."""
        ...

    # The records.

    def _take_name(self, record: Node | Link) -> None:
        name, is_open = record.name, isinstance(record, Node) and record.is_open
        try:
            if not _may_be_name(name) and (self._path or name != b"."):  # the top may be the destination itself
                raise OSError(errno.EINVAL, "not a name that a file can have")
            is_made = self._make(record)
        except OSError as error:
            self._judge(error, name)
            is_made = False
        if is_made and is_open:
            self._path.append(name)
        elif is_open:
            self._passing_over = 1

    def _make(self, record: Node | Link) -> bool:
        if isinstance(record, Link):
            self.link(record)
        elif not self.make(record):
            return False
        elif stat.S_ISREG(record.mode):
            self._size_bytes += len(record.content)
        self._files += 1
        return True

    def _take_data(self, data: Data) -> None:
        try:
            self.write(data)
            self._size_bytes += len(data.content)
        except OSError as error:
            self._give_up_file()
            self._judge(error, self._path.pop())
            self._passing_over = 1

    def _give_up_file(self) -> None:
        try:
            self.end(is_whole=False)
        except OSError as error:
            self.report(f"cannot remove a part of '{self.where(self._path[-1])}': {error.strerror}")

    def _take_end(self, end: End) -> None:
        name = self._path.pop()
        try:
            self.end(is_whole=end.is_whole)
        except OSError as error:
            self._judge(error, name)

    def _pass_over(self, record: Record) -> None:
        if isinstance(record, Node) and record.is_open:
            self._passing_over += 1
        elif isinstance(record, End):
            self._passing_over -= 1

    def _judge(self, error: OSError, name: bytes) -> None:
        """Report an error of one file, or raise one that concerns all."""
        is_full = isinstance(error, OutOfDataSpace | OutOfMetadataSpace)
        if isinstance(error, PoolError) and not is_full:
            raise error
        where = self.where(name)
        if not is_full and error.errno not in _ENDS_THE_COPY:
            self.report(f"cannot make '{where}': {error.strerror}")
            return
        raise same_error(error, f"the copy ended at '{where}': {error.strerror}") from error


def same_error(error: OSError, text: str) -> OSError:
    """An error that ends a copy, with another text; its class where that says what is full."""
    if isinstance(error, OutOfDataSpace | OutOfMetadataSpace):
        return type(error)(text)
    return CopyError(text, errno=error.errno)


def _may_be_name(name: bytes) -> bool:
    return bool(name) and b"/" not in name and b"\0" not in name and name not in (b".", b"..")
