"""What commands print: text for people, JSON for programs, one line for an error.

Tables and trees are plain text, the same on a terminal and in a pipe. Progress bars are rich's, loaded only when
standard error is a terminal and the work has already taken a while, by a thread that waits for that.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import IO, TYPE_CHECKING, Any, Final, TypeAlias

from cowfs.errors import CowfsError, UsageError
from cowfs.steps import Progress
from cowfs.units import format_size

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

StepProgress: TypeAlias = Callable[[str, int, int], None]
_PATIENCE_SECONDS: Final = 0.3

shows_progress = True  # what -q turns off
where = ""  # before the text of an error or a warning: the line of a batch
_PROGRAM: Final = "cowfs: "


class _StandardOutput(io.FileIO):
    """Standard output, which has a name in its errors."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from error


def name_standard_output() -> None:
    """Name standard output in all of its errors, also of what click and tarfile write."""
    was = sys.stdout
    assert isinstance(was, io.TextIOWrapper)
    raw = _StandardOutput(was.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        raw if was.write_through else io.BufferedWriter(raw),
        encoding=was.encoding,
        errors=was.errors,
        line_buffering=was.line_buffering,
        write_through=was.write_through,
    )


def print_json(value: object) -> None:
    """A result as one JSON document on standard output."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def answer(value: object, *lines: str, as_json: bool) -> None:
    """A result: as JSON for programs, as lines for people."""
    if as_json:
        print_json(value)
        return
    for line in lines:
        print(printable(line))


def as_object(value: object) -> dict[str, object]:
    """A structure as the object that it is in JSON, to add to."""
    import msgspec

    found = msgspec.to_builtins(value)
    assert isinstance(found, dict)
    return found


def print_error(error: OSError, *, as_json: bool) -> int:
    """An error as one line (or `{"error": {...}}`) on standard error; its exit status."""
    if as_json:
        import msgspec

        from cowfs.error_record import record_error

        print(msgspec.json.encode({"error": record_error(error)}).decode(), file=sys.stderr)
    else:
        print_line(f"{_PROGRAM}{describe(error)}")
    return error.exit_code if isinstance(error, CowfsError) else CowfsError.exit_code


def describe(error: OSError) -> str:
    if isinstance(error, CowfsError):
        return error.message
    if error.filename is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        return f"{name}: {error.strerror}"
    return str(error.strerror or error)


def print_line(text: str) -> None:
    """One line on standard error, whatever is in the text."""
    if text.startswith(_PROGRAM):
        text = f"{_PROGRAM}{where}{text.removeprefix(_PROGRAM)}"
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """Text whose control characters, which a terminal would obey, are written as escapes; one line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> None:
    """Aligned columns under a header; the columns numbered in `right` are aligned to the right.

    Nothing is cut, so that every name can be used; a terminal that is too narrow is named on standard error.
    """
    lines = [list(header), *([printable(cell) for cell in row] for row in rows)]
    columns = range(len(header))
    widths = [max(_width(line[i]) for line in lines) for i in columns]
    for line in lines:
        blanks = [" " * (widths[i] - _width(line[i])) for i in columns]
        print("  ".join(blanks[i] + line[i] if i in right else line[i] + blanks[i] for i in columns).rstrip())
    _say_too_narrow(sum(widths) + 2 * (len(widths) - 1))


def _width(text: str) -> int:
    """How many cells of a terminal a text takes: two for a wide character, none for one that joins the one before."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _say_too_narrow(wanted: int) -> None:
    if not sys.stdout.isatty():
        return
    import shutil

    if (width := shutil.get_terminal_size().columns) < wanted:
        print_line(f"cowfs: the table is {wanted} columns wide and this terminal {width}; --columns chooses some")


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Names and values, one a line, the values aligned; a field without a value is left out."""
    given = [(name, value) for name, value in fields if value]
    width = max(len(name) for name, _ in given)
    for name, value in given:
        print(f"{name.ljust(width)}  {printable(value)}")


def print_tree(roots: Sequence[str], children: Callable[[str], Sequence[str]], describe: Callable[[str], str]) -> None:
    """Trees drawn with lines; `describe` gives the text of a node. Any depth."""
    pending = [(name, "", "") for name in reversed(roots)]
    while pending:
        name, first_prefix, prefix = pending.pop()
        print(first_prefix + printable(describe(name)))
        below = children(name)
        for i, child in reversed(list(enumerate(below))):
            is_last = i == len(below) - 1
            pending.append((child, prefix + ("└── " if is_last else "├── "), prefix + ("    " if is_last else "│   ")))


@contextmanager
def progress(text: str) -> Iterator[Progress | None]:
    """A progress bar on standard error, for a block that may call back with (done, total); None when no one looks.

    Without a call, or with a total of None, which is one that is not known, the bar moves and shows no end.
    """
    if not shows_progress or not sys.stderr.isatty():
        yield None
        return
    with closing(_Bar(text)) as bar:
        yield bar.show


@contextmanager
def steps() -> Iterator[StepProgress | None]:
    """As `progress`, for work that says what it does: (what, done, total)."""
    if not shows_progress or not sys.stderr.isatty():
        yield None
        return
    with closing(_Bar("")) as bar:

        def show(what: str, done: int, total: int) -> None:
            bar.text = what
            bar.show(done, total)

        yield show


@contextmanager
def archive_out(file: str | None, redirected: str) -> Iterator[IO[bytes]]:
    """A new file for an archive, which is there when it is complete, or standard output.

    Args:
        redirected: the command with standard output redirected, for the message where that is a terminal.
    """
    if file is not None:
        from cowfs.new_files import new_file

        with new_file(os.path.abspath(file)) as out:
            yield out
        return
    if sys.stdout.isatty():
        raise UsageError(f"refusing to write a tar archive to a terminal; redirect it, as in '{redirected}'")
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Errors of the system in the block are about a file that the user named."""
    try:
        yield
    except CowfsError:
        raise
    except OSError as error:
        raise CowfsError(f"{path} cannot be written: {error.strerror}", errno=error.errno) from error


@contextmanager
def new_output(path: str) -> Iterator[Callable[[bytes], None]]:
    """A file that the user named, made before there is anything to write; complete, or not there.

    Yields:
        What writes to it.

    Raises:
        UsageError, CowfsError: it cannot be made or written.
    """
    from cowfs.new_files import new_file

    with ExitStack() as stack:
        with writing(path):
            file = stack.enter_context(new_file(os.path.abspath(path), force=True))

        def write(data: bytes) -> None:
            with writing(path):
                file.write(data)
                file.flush()

        yield write
        with writing(path):
            stack.close()


class _Bar:
    """A bar that appears when the work has taken a while, and disappears at its end."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._figures: tuple[int, int | None] = (0, None)
        self._bar: RichProgress | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(_PATIENCE_SECONDS, self._appear)
        self._timer.daemon = True
        self._timer.start()

    def show(self, done: int, total: int | None) -> None:
        self._figures = done, total
        if self._bar is not None:
            self._update(self._bar)

    def _appear(self) -> None:
        from rich.console import Console
        from rich.progress import Progress as RichBar

        with self._lock:
            if self._is_closed:
                return
            bar = RichBar(console=Console(stderr=True), transient=True)
            bar.add_task("", total=None)
            self._update(bar)
            bar.start()
            self._bar = bar

    def _update(self, bar: RichProgress) -> None:
        done, total = self._figures
        bar.update(bar.task_ids[0], description=self.text, completed=done, total=total)

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._is_closed = True
            if self._bar is not None:
                self._bar.stop()


def flag(value: bool) -> str:
    return "yes" if value else "no"


def size_change(old_bytes: int, new_bytes: int) -> str:
    if old_bytes == new_bytes:
        return f"{format_size(new_bytes)}, as before"
    return f"{format_size(new_bytes)}, was {format_size(old_bytes)}"


def when_full(no_space: str, timeout_seconds: float | None) -> str:
    """What writes to a full pool do, in words."""
    if no_space == "error":
        return "error: writes fail"
    limit = f", at most {timeout_seconds:g} s" if timeout_seconds else ""
    return f"queue: writes wait for space{limit}"
