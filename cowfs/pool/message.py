"""The pool's message grammar: one line of words, as `dmsetup message POOL 0 ...` takes it.

    create_thin <id>                    delete <id>                   reserve_metadata_snap
    create_snap <id> <origin id>        set_transaction_id <old> <new>   release_metadata_snap

Names are case-insensitive; numbers are decimal, with leading `+` or zeros allowed and `0x` not.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from cowfs.errors import InvalidRequest
from cowfs.units import MAX_THIN_ID

_NUMBER: Final = re.compile(r"\+?[0-9]+")
_MAX_U64: Final = 2**64 - 1
# Name -> largest value of each argument.
_GRAMMAR: Final[dict[str, tuple[int, ...]]] = {
    "create_thin": (MAX_THIN_ID,),
    "create_snap": (MAX_THIN_ID, MAX_THIN_ID),
    "delete": (MAX_THIN_ID,),
    "set_transaction_id": (_MAX_U64, _MAX_U64),
    "reserve_metadata_snap": (),
    "release_metadata_snap": (),
}


class Message(msgspec.Struct, frozen=True):
    """A message that is well formed: the name in lower case and its numbers, all within range."""

    name: str
    arguments: tuple[int, ...]

    def format(self) -> str:
        return " ".join([self.name, *map(str, self.arguments)])

    @classmethod
    def parse(cls, text: str) -> Message:
        """Raises InvalidRequest (EINVAL) for an unknown name, a wrong word count or a number out of range."""
        words = text.split()
        name = words[0].lower() if words else ""
        limits = _GRAMMAR.get(name)
        if limits is None:
            known = ", ".join(_GRAMMAR)
            raise InvalidRequest(f"'{text}' is not a pool message; the messages are {known}")
        numbers = words[1:]
        if len(numbers) != len(limits):
            raise InvalidRequest(f"message '{text}': {name} takes {len(limits)} numbers, not {len(numbers)}")
        for word, limit in zip(numbers, limits, strict=True):
            if not _NUMBER.fullmatch(word) or int(word) > limit:
                raise InvalidRequest(f"message '{text}': '{word}' is not a decimal number from 0 to {limit}")
        return cls(name, tuple(int(word) for word in numbers))
