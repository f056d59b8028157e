"""User and group ids on their way between a layer's files, which have the host's, and an archive, which has the
container's: of owners, and of those whom access control lists name."""

from __future__ import annotations

from collections.abc import Sequence

from cowfs.ext4.files import acl
from cowfs.layers.interface import IdMaps, IdRange


class UnmappedId(Exception):
    """The message names the id and the direction."""


class IdShift:
    """One direction of the maps. Every method raises UnmappedId for an id that the maps do not have.

    Args:
        inward: from the host's ids to the container's; else the other way.
    """

    def __init__(self, maps: IdMaps, *, inward: bool) -> None:
        self._inward = inward
        self._uids = _ranges(maps.uids, inward=inward)
        self._gids = _ranges(maps.gids, inward=inward)

    def uid(self, uid: int) -> int:
        return self._shift(uid, self._uids, "user") if self._uids else uid

    def gid(self, gid: int) -> int:
        return self._shift(gid, self._gids, "group") if self._gids else gid

    def xattr(self, name: bytes, value: bytes) -> bytes:
        """The value of an attribute, with ids shifted where it has some. Raises OSError (EINVAL) for a bad list."""
        if name not in (acl.ACCESS, acl.DEFAULT) or not (self._uids or self._gids):
            return value
        return acl.pack([entry._replace(id=self._shift_named(entry)) for entry in acl.parse(value)])

    def _shift_named(self, entry: acl.AclEntry) -> int:
        if entry.tag == acl.USER:
            return self.uid(entry.id)
        return self.gid(entry.id) if entry.tag == acl.GROUP else entry.id

    def _shift(self, number: int, ranges: list[tuple[int, int, int]], kind: str) -> int:
        for begin, end, target in ranges:
            if begin <= number < end:
                return target + number - begin
        where = (
            "of the host is not mapped into the container"
            if self._inward
            else "of the container is not mapped to the host"
        )
        raise UnmappedId(f"{kind} id {number} {where} by the id maps")


def _ranges(maps: Sequence[IdRange], *, inward: bool) -> list[tuple[int, int, int]]:
    """(begin, end, begin of the target)."""
    ways = [(item.outside, item.inside) if inward else (item.inside, item.outside) for item in maps]
    return [(begin, begin + item.length, target) for (begin, target), item in zip(ways, maps, strict=True)]
