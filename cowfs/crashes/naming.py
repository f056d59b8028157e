"""Files and offsets instead of numbers: what operations were about, and what a state lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cowfs.crashes.history import History, Loss, State
from cowfs.filetree import ROOT_INODE
from cowfs.recording.operations import FIRST_NEW, Operation

_NAMES_SHOWN = 3


class Namer:
    """The paths of files at each operation of a recording.

    Args:
        paths_before: finds paths of the files with these inode numbers before the recording; asked once.
    """

    def __init__(self, operations: Sequence[Operation], paths_before: Callable[[set[int]], Mapping[int, str]]) -> None:
        self._operations = operations
        self._paths: list[str] = []
        wanted = {number for operation in operations for number in (operation.file, operation.parent)}
        wanted |= {operation.new_parent for operation in operations}
        wanted -= {0, ROOT_INODE}
        before = {number for number in wanted if number < FIRST_NEW}
        paths = {ROOT_INODE: "", **(paths_before(before) if before else {})}
        for operation in operations:
            self._paths.append(self._follow(operation, paths))

    @staticmethod
    def _follow(operation: Operation, paths: dict[int, str]) -> str:
        """The path of an operation's file, at its beginning, or, where it gets its first name, at its end."""

        def named(parent: int, name: bytes) -> str:
            text = name.decode(errors="backslashreplace")
            directory = paths.get(parent, f"directory {parent}")
            return f"{directory}/{text}" if directory else text

        kind, file = operation.kind, operation.file
        if kind in ("create", "mkdir", "symlink"):
            paths[file] = named(operation.parent, operation.name)
        elif kind in ("rename", "exchange"):
            old, new = named(operation.parent, operation.name), named(operation.new_parent, operation.new_name)
            paths[file] = new
            for number, path in list(paths.items()):
                if path.startswith(old + "/"):
                    paths[number] = new + path[len(old) :]
            return f"{old} to {new}"
        elif kind in ("unlink", "rmdir", "link"):
            return named(operation.parent, operation.name)
        return paths.get(file) or ("/" if file == ROOT_INODE else f"file {file}")

    def path(self, operation: int) -> str:
        return self._paths[operation]

    def operation(self, number: int) -> str:
        """An operation in words."""
        operation, path = self._operations[number], self._paths[number]
        match operation.kind:
            case "create" | "mkdir" | "symlink":
                return f"creation of {path}"
            case "link":
                return f"link {path}"
            case "unlink" | "rmdir":
                return f"removal of {path}"
            case "rename" | "exchange":
                return f"rename of {path}"
            case "write":
                return self.data(number)
            case "truncate":
                return f"truncation of {path} to {operation.offset} bytes"
            case "attributes":
                return f"change of attributes of {path}"
            case "set_xattr" | "remove_xattr":
                return f"change of the attribute {operation.name.decode(errors='backslashreplace')} of {path}"
            case _:
                return f"{operation.kind} of {path}"

    def data(self, number: int, begin: int | None = None, end: int | None = None) -> str:
        """Bytes of a write in words: all, or those from `begin` to before `end`."""
        operation = self._operations[number]
        first = operation.offset if begin is None else begin
        last = (operation.offset + operation.length if end is None else end) - 1
        which = f"byte {first}" if first == last else f"bytes {first} to {last}"
        return f"data of {self._paths[number]}, {which}"


def describe_loss(history: History, loss: Loss) -> str:
    """What is lost of an item, in words."""
    sectors = f", {len(loss.sectors)} of {len(history.items[loss.item].sectors)} sectors" if loss.sectors else ""
    return f"{history.describe(loss.item)}{sectors}"


def explain(history: History, state: State) -> str:
    """What went wrong in a state with few losses: what persisted before what, or what was lost although promised."""
    if not state.lost:
        unwritten = history.unwritten(state.position)
        if unwritten:
            return f"{unwritten} was not written yet{_promised(history, state)}"
        issued = history.issued_until(state.position)
        if 0 < issued < len(history.items):
            return f"{history.describe(issued - 1)} persisted before {history.describe(issued)}"
        return f"all that was written by then is there{_promised(history, state)}, and the check failed"
    lost = [loss.item for loss in state.lost]
    torn = [loss for loss in state.lost if loss.sectors]
    missing = history.describe(lost[0])
    if torn and len(lost) == 1:
        return f"{missing} were torn"
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    kind, _ = history.subject(lost[0])
    kept = _name_or_size_kept(history, state, lost)
    if kept is not None:
        return f"{history.describe(kept)} persisted before its {kind}"
    marked = [at for at, _ in history.marks if at <= state.position]
    if marked and history.items[lost[0]].issued < marked[-1]:
        verb = "were" if more or kind == "data" else "was"
        return f"{missing}{more} {verb} lost{_promised(history, state)}"
    persisted = _persisted_beside(history, state, lost)
    if persisted is None:
        return f"{missing}{more} lost"
    return f"{history.describe(persisted)} persisted before {missing}{more}"


def _name_or_size_kept(history: History, state: State, lost: Sequence[int]) -> int | None:
    """Where data or a size is lost: a later name of the same file that persisted, or the size of the same write."""
    kind, file = history.subject(lost[0])
    if kind not in ("data", "size") or not file:
        return None
    kept = [item for item in range(history.issued_until(state.position)) if item not in lost]
    for item in kept:
        if item > lost[0] and history.subject(item) == ("name", file):
            return item
    for item in kept:
        is_same = history.event_of(item) == history.event_of(lost[0])
        if kind == "data" and is_same and history.subject(item) == ("size", file):
            return item
    return None


def _persisted_beside(history: History, state: State, lost: Sequence[int]) -> int | None:
    """What persisted although it was issued later, and nothing made it durable; else the last thing before."""
    later = range(lost[0] + 1, history.issued_until(state.position))
    for item in later:
        if item not in lost and history.items[item].durable > state.position:
            return item
    return lost[0] - 1 if lost[0] else None


def _promised(history: History, state: State) -> str:
    marks = history.marks_at(state.position)
    return f" although '{marks[-1]}' was promised" if marks else ""
