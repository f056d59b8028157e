"""What a layer changed, found from the blocks in which its volume differs from its parent's: O(changed).

    1. Of the inode tables, read what lies in changed blocks, and compare the records: these inodes changed.
    2. A changed directory is to be looked at. So are those that hold a name of a changed file: a file that was written
       in place leaves no trace in its directory, and `NameSearch` finds it.
    3. So are all directories above those, up to the root.
    4. Walk, as the rule says, but only through what is to be looked at. Where both sides have the same directory,
       compare the names in those of its blocks that differ; elsewhere only changed inodes and ways down can differ.

Why that is all: two inodes with the same number and the same record are the same, and a directory then has the same
names. So a path can only differ when it passes through a changed directory, or ends at a changed inode.

The first step reads what is on the devices, and does all of 1 to 3 in one go; 4 is in steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from cowfs.ext4.files.tables import InodeRange, InodeTables, differ
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from cowfs.layers.changes.names import NameSearch, may_name
from cowfs.layers.changes.walk import Child, Listing, Walk
from cowfs.layers.interface import Change, LayerRoot
from cowfs.ranges import RangeSet
from cowfs.steps import Steps
from cowfs.thinmeta.delta import DeltaRange

_READ_INODES_MAX: Final = 4096


def block_changes(
    layer: LayerRoot, parent: LayerRoot, ranges: Iterable[DeltaRange], block_bytes: int
) -> Steps[list[Change]]:
    """As `walk_changes`, for two snapshots with a common origin.

    Args:
        layer, parent: roots in volumes of equal geometry, which are synced.
        ranges: where the devices differ, ascending.
        block_bytes: size of the pool's data block.

    Raises:
        OSError: a volume cannot be read.

    Cost: in proportion to the inode table blocks that differ and to what is in changed directories; for files that were
    written in place, also the search for their names, at worst of all directories.
    """
    return (yield from BlockWalk(layer, parent, changed_bytes_in(ranges, block_bytes)).run())


def changed_bytes_in(ranges: Iterable[DeltaRange], block_bytes: int) -> RangeSet:
    """Where two devices differ, as bytes of them."""
    return RangeSet((item.vblock * block_bytes, (item.vblock + item.length) * block_bytes) for item in ranges)


@dataclass(slots=True)
class _ChangedInodes:
    """Inodes of the layer.

    Args:
        changed: in use on both sides, and not the same.
        directories: those of `changed` that are directories now, and new directories.
        links: the link counts of the other ones of `changed`.
    """

    changed: set[int] = field(default_factory=set)
    directories: set[int] = field(default_factory=set)
    links: dict[int, int] = field(default_factory=dict)


class BlockWalk(Walk):
    """The walk of `block_changes`. The first of its work is done here, in one go."""

    def __init__(self, layer: LayerRoot, parent: LayerRoot, changed_bytes: RangeSet) -> None:
        super().__init__(layer, parent)
        assert isinstance(layer.tree, Volume)
        assert isinstance(parent.tree, Volume)
        self._volume, self._parent_volume = layer.tree, parent.tree
        self._changed_bytes = changed_bytes
        tables = self._volume.inode_tables()
        self._block_bytes = tables.geometry.block_bytes
        inodes = _compare_tables(tables, self._parent_volume.inode_tables(), changed_bytes)
        self._changed = inodes.changed
        directories = inodes.changed & inodes.directories
        directories |= self._directories_naming(tables, inodes)
        self._on_the_way = self._with_all_above(directories)
        self._wanted = self._changed | self._on_the_way

    def _directories_naming(self, tables: InodeTables, inodes: _ChangedInodes) -> set[int]:
        """Where the changed files have names. Most that have a new one have no old one, and need no search."""
        search = NameSearch(self._volume, tables, inodes.links)
        search.search_directories([ROOT_INODE])  # the layer's id file lies there, and differs in each layer
        search.search_directories(sorted(inodes.directories))
        search.search_everywhere()
        return search.found

    def _with_all_above(self, directories: set[int]) -> set[int]:
        found = set[int]()
        for directory in directories:
            number = directory
            while number not in found:
                found.add(number)
                number = self._volume.lookup(number, b"..").inode
        return found

    # Where to look.

    def listings(self, new: int, old: int) -> tuple[Listing, Listing]:
        if new != old:
            return _all_names(self._volume, new), _all_names(self._parent_volume, old)
        if new not in self._on_the_way:
            return {}, {}
        if new not in self._changed:
            wanted = self._wanted_names(self._volume.name_blocks(new))
            return wanted, dict(wanted)
        here, there = list(self._volume.name_blocks(new)), list(self._parent_volume.name_blocks(new))
        common = set(here) & set(there)
        wanted = self._wanted_names(common)
        return (
            wanted | _names(self._volume, (block for block in here if block not in common)),
            wanted | _names(self._parent_volume, (block for block in there if block not in common)),
        )

    def may_differ(self, new: int, old: int) -> bool:
        return new != old or new in self._changed

    def data_to_compare(self, new: int, old: int) -> Iterator[tuple[int, int]]:
        """Of files in the same blocks, only what lies in changed ones."""
        inline = self._volume.is_inline(new) or self._parent_volume.is_inline(old)
        segments = [] if inline else self._volume.data_segments(new)
        if inline or segments != self._parent_volume.data_segments(old):
            yield from super().data_to_compare(new, old)
            return
        size = self._block_bytes
        for segment in segments:
            shift = (segment.logical - segment.physical) * size
            begin_on_device = segment.physical * size
            for begin, end in self._changed_bytes.within(begin_on_device, begin_on_device + segment.length * size):
                yield begin + shift, end + shift

    def _wanted_names(self, blocks: Iterable[bytes]) -> Listing:
        """Of directory blocks that both sides have, the names that lead to changes."""
        wanted = self._wanted
        return _names(self._volume, (block for block in blocks if may_name(block, wanted)), wanted)


def _all_names(volume: Volume, directory: int) -> Listing:
    return _names(volume, volume.name_blocks(directory)) if directory else {}


def _names(volume: Volume, blocks: Iterable[bytes], wanted: set[int] | None = None) -> Listing:
    """The names in some blocks of a directory, or only those that lead to wanted inodes."""
    return {
        entry.name: Child(entry.inode, volume.entry_mode(entry))
        for block in blocks
        for entry in volume.names_in(block)
        if (wanted is None or entry.inode in wanted) and entry.name not in (b".", b"..")
    }


def _compare_tables(tables: InodeTables, parent_tables: InodeTables, changed_bytes: RangeSet) -> _ChangedInodes:
    inodes = _ChangedInodes()
    geometry = tables.geometry
    for number, raw, old_raw in _unequal_records(tables, parent_tables, changed_bytes):
        record = tables.record(number, raw)
        if record is None or (number < geometry.first_inode and number != ROOT_INODE):
            continue
        if parent_tables.record(number, old_raw) is not None:
            if not differ(raw, old_raw):
                continue
            inodes.changed.add(number)
            if not record.is_directory:
                inodes.links[number] = record.links
        if record.is_directory:
            inodes.directories.add(number)
    return inodes


def _unequal_records(
    tables: InodeTables, parent_tables: InodeTables, changed_bytes: RangeSet
) -> Iterator[tuple[int, bytes, bytes]]:
    """(inode, record, parent's record) where the bytes differ."""
    size = tables.geometry.inode_bytes
    for first, length in tables.geometry.inodes_in(changed_bytes):
        for begin in range(first, first + length, _READ_INODES_MAX):
            piece = InodeRange(begin, min(_READ_INODES_MAX, first + length - begin))
            raw, old_raw = tables.read(piece), parent_tables.read(piece)
            if raw == old_raw:
                continue
            for index in range(piece.length):
                one, other = raw[index * size : index * size + size], old_raw[index * size : index * size + size]
                if one != other:
                    yield begin + index, one, other
