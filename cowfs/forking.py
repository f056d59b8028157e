"""What a forked process may do with what its parent has open: nothing.

A child has a copy of its parent's memory and descriptors. With them it would go on with a pool as if no other process
had it, and each of the two would take the other's blocks for free; a lock or a connection would last as long as the
child. So in the child, before `os.fork` returns there, every object that was registered with `not_inherited`

    has its descriptors closed, and writes nothing more;
    raises ForkedError at every use. Only what ends a use, such as `close` or the end of a `with` block, does nothing.

A child of an event loop of trio cannot use cowfs in any case: trio does not support it (the epoll descriptor is the
parent's too, and the interpreter waits at the end for worker threads that the child does not have). It has to execute
another program or end with `os._exit`.

A child where that fails ends at once. The parent does not notice, and no use asks first: it is the class of the objects
that is another one in the child. Programs that a process starts inherit no descriptor in the first place.
"""

from __future__ import annotations

import os
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from cowfs.errors import ForkedError

T = TypeVar("T")
_UNSAFE: Final = 1  # exit status of a child that could not let go of what is its parent's


class _Registered(NamedTuple):
    reference: weakref.ref[Any]
    what: str
    drop: Callable[[Any], object] | None
    ends: tuple[str, ...]


_registered: dict[int, _Registered] = {}


def not_inherited(
    thing: T, what: str, *, drop: Callable[[T], object] | None = None, ends: tuple[str, ...] = ("close",)
) -> None:
    """Let an object be of no use in forked processes.

    Args:
        what: names it in messages.
        drop: closes its descriptors in the child, and does nothing else.
        ends: its methods that do nothing there.
    """
    key = id(thing)
    reference = weakref.ref(thing, lambda _: _registered.pop(key, None))
    _registered[key] = _Registered(reference, what, drop, ends)


def close_in_children(thing: T, drop: Callable[[T], object]) -> None:
    """Only close the descriptors of an object in forked processes, as long as it exists."""
    not_inherited(thing, "", drop=drop)


class _Detachable(Protocol):
    def detach(self) -> int: ...


def close_socket(socket: _Detachable) -> None:
    """Close a socket, of trio or not, without a word to tasks that wait for it and to its peer."""
    os.close(socket.detach())


def origin() -> Callable[[], bool]:
    """Returns True later if this is still the process that called this, and not one forked from it."""
    pid = os.getpid()
    return lambda: os.getpid() == pid


def _close_inherited() -> None:
    """A child in which this does not succeed ends here: it would take its parent's blocks for its own."""
    try:
        for entry in _taken_out():
            thing = entry.reference()
            if thing is None:
                continue
            if entry.drop is not None:
                with suppress(OSError):
                    entry.drop(thing)
            if entry.what:
                _disable(thing, entry)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(_UNSAFE)


def _taken_out() -> Iterator[_Registered]:
    """What is registered, the last first. Objects may end meanwhile, and are then no longer registered."""
    with suppress(KeyError):
        while True:
            yield _registered.popitem()[1]


def _disable(thing: Any, entry: _Registered) -> None:
    kind = type(thing)

    def refuse(self: object, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        if name in entry.ends:
            return _do_nothing
        raise ForkedError(entry.what, os.getppid())

    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(__slots__=(), __getattribute__=refuse, __module__=kind.__module__)

    thing.__class__ = types.new_class(kind.__name__, (kind,), exec_body=fill)


def _do_nothing(*_arguments: object, **_options: object) -> None:
    return None


os.register_at_fork(after_in_child=_close_inherited)
