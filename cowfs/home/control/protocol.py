"""What travels over the control socket of a home: one JSON value a line, each line bounded.

    server   {"cowfs":1,"pid":4711,"version":"0.1.0"}      once, when a client connects
    client   {"op":"create","name":"web"}                  a request, its fields as in `operations`
    server   {"piece":...}                                 none or more, for operations that answer a sequence
    server   {"result":...}  or  {"error":{...}}           the end of the answer; the next request may follow

A result that is an open file travels beside its line as SCM_RIGHTS, and so does the file that an upload reads. With a
request that takes or gives bytes comes one end of a socket pair, on which each piece follows its length (4 bytes,
little end first); an empty piece ends them, and a socket that ends without one was given up. Errors
keep their class, errno, exit code and fields, so that a remote error is as a local one to its caller.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from cowfs.error_record import ErrorRecord

PROTOCOL_VERSION: Final = 1
ABSENT: Final = msgspec.Raw()
SOCKET_NAME: Final = "cowfs.sock"
MAX_REQUEST_BYTES: Final = 1 << 20  # the names of some ten thousand devices
PIECE_HEADER: Final = struct.Struct("<I")
MAX_REPLY_BYTES: Final = 1 << 20


class Greeting(msgspec.Struct, frozen=True):
    """The first line of a server."""

    cowfs: int
    pid: int
    version: str


class Reply(msgspec.Struct, omit_defaults=True):
    """One line of an answer; exactly one of the three is set."""

    result: msgspec.Raw = ABSENT
    piece: msgspec.Raw = ABSENT
    error: ErrorRecord | None = None
