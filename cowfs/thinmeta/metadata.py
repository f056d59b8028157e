"""One pool's metadata: devices, mappings, space maps, and the transaction around them.

    superblock ──► mapping tree: thin id ──► subtree root ──► virtual block ──► (data block, time)
               ├─► details tree: thin id ──► mapped blocks, transaction id, creation and snapshot times
               ├─► data space map:     index tree ──► bitmaps, overflow tree
               └─► metadata space map: index block ──► bitmaps, overflow tree

Sharing is seen by time: every snapshot advances the pool's `time` and marks origin and snapshot with it; a mapping
older than its device's mark may be shared. It may say so when it no longer is (then one copy too many is made), never
the reverse.

Changes stay in memory until `commit`; a crash before leaves the last commit whole, because no block of it is written.
A failure in the middle of a change (no metadata space, I/O, damage) leaves the transaction unusable: the owner calls
`abort`.

The caller flushes the data device before `commit`, so that committed mappings never point to data that is not there.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

import msgspec

from cowfs.blockdev import BlockDevice
from cowfs.errors import (
    InvalidRequest,
    MetadataCorrupt,
    NoSuchThin,
    OutOfDataSpace,
    PoolIoError,
    ThinBusy,
    ThinExists,
)
from cowfs.thinmeta.btree import BTree
from cowfs.thinmeta.format import (
    DETAILS,
    ENTRIES_PER_BITMAP,
    MAX_DATA_BLOCK,
    MAX_METADATA_BITMAPS,
    U64,
    DeviceDetails,
    Node,
    Superblock,
)
from cowfs.thinmeta.mapping import ThinMapping, data_runs
from cowfs.thinmeta.space_maps import SpaceMaps
from cowfs.thinmeta.store import DEFAULT_CACHE_NODES, Store
from cowfs.units import (
    MAX_METADATA_BLOCKS,
    MAX_SNAPSHOT_TIME,
    MAX_THIN_ID,
    METADATA_BLOCK_BYTES,
    is_data_block_size,
)

_NEIGHBOURS: Final = 4  # free blocks in a row: what one message changes, and goes in one write


class Metadata:
    """The metadata of an open pool; made by `create` or `open`.

    One thread at a time. `changed` says whether there is something to commit.
    """

    def __init__(self, device: BlockDevice, superblock: Superblock, *, read_only: bool, cache_nodes: int) -> None:
        self._device = device
        self._superblock = superblock
        self._read_only = read_only
        self._store = Store(device, cache_nodes)
        self._thins: dict[int, ThinMapping] = {}
        self._changed_thins: dict[int, ThinMapping] = {}  # a commit looks at no others, of which there may be thousands
        self.changed = False
        store = self._store
        self.subtrees = BTree(store, U64, "mappings", retain=self._retain_data, release=self._release_data)
        self._devices = BTree(store, U64, "thin devices", retain=self._retain_subtrees, release=self._release_subtrees)
        self._details = BTree(store, DETAILS, "device details")
        self._maps = SpaceMaps(store)

    # ------------------------------------------------------------------ making and opening

    @classmethod
    def create(
        cls, device: BlockDevice, data_block_sectors: int, *, cache_nodes: int = DEFAULT_CACHE_NODES
    ) -> Metadata:
        """Format a device: no data blocks yet (`resize_data` adds them), committed.

        Raises:
            InvalidRequest: not a data block size.
            OutOfMetadataSpace: the device is too small to hold even that.
        """
        if not is_data_block_size(data_block_sectors):
            raise InvalidRequest(f"a data block of {data_block_sectors} sectors is not possible")
        blocks = min(device.size_bytes // METADATA_BLOCK_BYTES, MAX_METADATA_BLOCKS)
        metadata = cls(device, Superblock(data_block_sectors, blocks), read_only=False, cache_nodes=cache_nodes)
        metadata._format(blocks)
        metadata.commit()
        return metadata

    def _format(self, blocks: int) -> None:
        superblock = self._superblock
        self._maps.make(superblock, blocks)
        superblock.mapping_root = self._devices.empty()
        superblock.details_root = self._details.empty()
        self.changed = True

    @classmethod
    def open(
        cls,
        device: BlockDevice,
        *,
        data_block_sectors: int | None = None,
        read_only: bool = False,
        cache_nodes: int = DEFAULT_CACHE_NODES,
    ) -> Metadata:
        """Open what is on a device.

        Args:
            data_block_sectors: what the caller believes; None to take the stored one.
            cache_nodes: how many clean btree nodes to keep (about 4 KiB each).

        Raises:
            MetadataCorrupt: bad checksum or magic (EILSEQ), superblock of another place (ENOTBLK).
            InvalidRequest: feature bits that are not known, another data block size, or a device that was cut short.
        """
        superblock = cls._read_superblock(device, read_only, data_block_sectors)
        needed_bytes = superblock.metadata_space_map.nr_blocks * METADATA_BLOCK_BYTES
        if device.size_bytes < needed_bytes:
            raise InvalidRequest(
                f"the metadata device has {device.size_bytes} bytes and its pool needs {needed_bytes}: it was cut short"
            )
        metadata = cls(device, superblock, read_only=read_only, cache_nodes=cache_nodes)
        metadata._maps.load(superblock)
        return metadata

    @staticmethod
    def _read_superblock(device: BlockDevice, read_only: bool, data_block_sectors: int | None) -> Superblock:
        if device.size_bytes < METADATA_BLOCK_BYTES:
            message = f"the device holds {device.size_bytes} bytes, less than one block"
            raise MetadataCorrupt(message, block=0, path="superblock")
        superblock = Superblock.unpack(device.pread(0, METADATA_BLOCK_BYTES))
        if superblock.incompat_flags or (superblock.compat_ro_flags and not read_only):
            raise InvalidRequest(
                f"the pool uses features that are not known (incompat {superblock.incompat_flags:#x}, "
                f"compat_ro {superblock.compat_ro_flags:#x}); use a newer cowfs"
            )
        found = superblock.data_block_sectors
        if not is_data_block_size(found):
            message = f"the data block size is {found} sectors, which is not possible"
            raise MetadataCorrupt(message, block=0, path="superblock")
        if data_block_sectors not in (None, found):
            raise InvalidRequest(
                f"the pool was made with data blocks of {found} sectors, not {data_block_sectors}; give {found}"
            )
        return superblock

    # ------------------------------------------------------------------ figures

    @property
    def transaction_id(self) -> int:
        return self._superblock.transaction_id

    @property
    def time(self) -> int:
        """The snapshot counter."""
        return self._superblock.time

    @property
    def needs_check(self) -> bool:
        return self._superblock.needs_check

    @property
    def held_root(self) -> int | None:
        """Block of the held metadata snapshot."""
        return self._superblock.held_root or None

    @property
    def data_block_sectors(self) -> int:
        return self._superblock.data_block_sectors

    @property
    def metadata_blocks(self) -> int:
        return self._store.counts.nr_blocks

    @property
    def metadata_free_blocks(self) -> int:
        """As the kernel counts: blocks taken in this transaction stay taken, freed ones are free after the commit."""
        counts = self._store.counts
        return max(0, counts.nr_blocks - counts.committed_allocated - counts.taken)

    @property
    def data_blocks(self) -> int:
        return self._maps.data.nr_blocks

    @property
    def data_used_blocks(self) -> int:
        """In use now."""
        return self._maps.data.allocated

    @property
    def data_free_blocks(self) -> int:
        """As the kernel counts: also what this transaction freed, which is available only after the commit."""
        return self._maps.data.free

    def used_data_runs(self) -> Iterator[tuple[int, int]]:
        """Runs (first data block, length) of what is in use as of the last commit, ascending."""
        return self._maps.data.used_runs()

    # ------------------------------------------------------------------ devices

    def thin_ids(self) -> list[int]:
        return [key for key, _ in self._devices.items(self._superblock.mapping_root)]

    def details(self, thin_id: int) -> DeviceDetails:
        """A copy, with what this transaction changed. Raises NoSuchThin."""
        thin = self._thins.get(thin_id)
        if thin is not None:
            return msgspec.structs.replace(thin.details)
        return self._stored_details(thin_id)

    def _stored_details(self, thin_id: int) -> DeviceDetails:
        words = self._details.get(self._superblock.details_root, thin_id)
        if words is None:
            raise NoSuchThin(f"thin device {thin_id} is not in the pool")
        return DeviceDetails.from_words(*words)

    def open_thin(self, thin_id: int) -> ThinMapping:
        """The mapping of a device; one object per id for as long as the device lives.

        Raises:
            NoSuchThin: the id is not in the pool.
            MetadataCorrupt: what is known of it cannot be read.
        """
        thin = self._thins.get(thin_id)
        if thin is None:
            details = self._stored_details(thin_id)
            thin = self._thins[thin_id] = ThinMapping(self, thin_id, self._subtree_root(thin_id), details)
        return thin

    def _subtree_root(self, thin_id: int) -> int:
        words = self._devices.get(self._superblock.mapping_root, thin_id)
        if words is None:
            raise NoSuchThin(f"thin device {thin_id} is not in the pool")
        return words[0]

    def create_thin(self, thin_id: int) -> None:
        """Raises ThinExists, or InvalidRequest for an id outside 24 bits."""
        self.require_new(thin_id)
        details = DeviceDetails(0, self.transaction_id, self.time, self.time)
        self._add_device(thin_id, self.subtrees.empty(), details)

    def create_snap(self, thin_id: int, origin_id: int) -> None:
        """Share the origin's subtree: O(1) whatever is mapped.

        Raises:
            ThinExists: looked at before the origin.
            NoSuchThin: no such origin.
            InvalidRequest: an id outside 24 bits, or the pool's 2**24 - 1 snapshots are used up.
        """
        origin = self.require_snapshot(thin_id, origin_id)
        self._superblock.time += 1
        self._store.counts.increment(origin.root)
        origin.mark_snapshotted(self.time)
        details = DeviceDetails(origin.mapped_blocks, self.transaction_id, self.time, self.time)
        self._add_device(thin_id, origin.root, details)

    def require_new(self, thin_id: int) -> None:
        """Raise what `create_thin` would refuse; nothing changes."""
        self.check_writable()
        if not 0 <= thin_id <= MAX_THIN_ID:
            raise InvalidRequest(f"device id {thin_id} is outside 0..{MAX_THIN_ID}")
        if thin_id in self._thins or self._details.get(self._superblock.details_root, thin_id) is not None:
            raise ThinExists(f"thin device {thin_id} exists already; take another id")

    def require_snapshot(self, thin_id: int, origin_id: int) -> ThinMapping:
        """The origin. Raises what `create_snap` would refuse; nothing changes."""
        self.require_new(thin_id)
        origin = self.open_thin(origin_id)
        if self.time >= MAX_SNAPSHOT_TIME:
            raise InvalidRequest(f"the pool took {self.time} snapshots, the most that the format can count")
        return origin

    def _add_device(self, thin_id: int, root: int, details: DeviceDetails) -> None:
        self.store_root(thin_id, root)
        thin = self._thins[thin_id] = ThinMapping(self, thin_id, root, details)
        thin.changed = thin.details_changed = True
        self.note_changed(thin)

    def note_changed(self, thin: ThinMapping) -> None:
        """What is known of a device is to be written by the commit."""
        self._changed_thins[thin.thin_id] = thin
        self.changed = True

    def delete_thin(self, thin_id: int) -> None:
        """Forget a device and drop its references. Raises NoSuchThin."""
        self.check_writable()
        thin = self.open_thin(thin_id)
        superblock = self._superblock
        if self._details.get(superblock.details_root, thin_id) is not None:
            superblock.details_root = self._details.remove(superblock.details_root, thin_id)
        self.take_root(thin_id)
        self.subtrees.destroy(thin.root)
        self._forget_thin(thin_id)
        thin.forget_leaf()
        self.changed = True

    def _forget_thin(self, thin_id: int) -> None:
        del self._thins[thin_id]
        self._changed_thins.pop(thin_id, None)

    def take_over(self, thin_id: int, other_id: int) -> None:
        """Have a device map what another one does, which is forgotten; its id stays, and who made it.

        Raises:
            NoSuchThin: one is not in the pool.
        """
        self.check_writable()
        thin, other = self.open_thin(thin_id), self.open_thin(other_id)
        superblock = self._superblock
        superblock.details_root = self._details.remove(superblock.details_root, other_id)
        self.take_root(other_id)
        self.take_root(thin_id)
        self.subtrees.destroy(thin.root)
        self._forget_thin(other_id)
        self.store_root(thin_id, other.root)
        for mapping in (thin, other):
            mapping.forget_leaf()
        thin.root = other.root
        thin.details = msgspec.structs.replace(
            other.details, transaction_id=thin.details.transaction_id, creation_time=thin.details.creation_time
        )
        thin.changed = thin.details_changed = True
        self.note_changed(thin)

    def store_root(self, thin_id: int, root: int) -> None:
        """Put a device's subtree root into the top level of the mapping tree."""
        superblock = self._superblock
        superblock.mapping_root = self._devices.insert(superblock.mapping_root, thin_id, root)

    def take_root(self, thin_id: int) -> None:
        """Take it out again."""
        superblock = self._superblock
        superblock.mapping_root = self._devices.remove(superblock.mapping_root, thin_id)

    # ------------------------------------------------------------------ pool-wide changes

    def set_transaction_id(self, old: int, new: int) -> None:
        """Raises InvalidRequest when `old` is not the current one."""
        self.require_transaction_id(old)
        self._superblock.transaction_id = new
        self.changed = True

    def require_transaction_id(self, expected: int) -> None:
        """Raise InvalidRequest when it is another one."""
        self.check_writable()
        if expected != self.transaction_id:
            raise InvalidRequest(f"the transaction id is {self.transaction_id}, not {expected}; it was not changed")

    def set_needs_check(self) -> None:
        """Written by the next commit."""
        self._superblock.needs_check = True
        self.changed = True

    def reserve_snap(self) -> None:
        """Hold a copy of the committed roots for readers. Commits first; the owner commits again to publish it.

        Raises:
            ThinBusy: one is held already (EBUSY).
        """
        self.check_writable()
        if self.held_root is not None:
            raise ThinBusy(f"a metadata snapshot is held already, at block {self.held_root}; release it first")
        self.commit()
        superblock = self._superblock
        location = self._store.allocate()
        held = Superblock(
            data_block_sectors=superblock.data_block_sectors,
            metadata_nr_blocks=superblock.metadata_nr_blocks,
            flags=superblock.flags,
            location=location,
            uuid=superblock.uuid,
            version=superblock.version,
            time=superblock.time,
            transaction_id=superblock.transaction_id,
            mapping_root=superblock.mapping_root,
            details_root=superblock.details_root,
        )
        self._store.write_block(location, held.pack())
        self._store.counts.increment(superblock.mapping_root)
        self._store.counts.increment(superblock.details_root)
        superblock.held_root = location
        self.changed = True

    def release_snap(self) -> None:
        """Raises InvalidRequest when none is held."""
        location = self.require_snap()
        held = Superblock.unpack(self._store.read_block(location), location)
        self._devices.destroy(held.mapping_root)
        self._details.destroy(held.details_root)
        self._store.counts.decrement(location)
        self._superblock.held_root = 0
        self.changed = True

    def require_snap(self) -> int:
        """Where the held metadata snapshot is. Raises InvalidRequest when none is held."""
        self.check_writable()
        if self.held_root is None:
            raise InvalidRequest("no metadata snapshot is held")
        return self.held_root

    def resize_data(self, blocks: int) -> None:
        """Grow the data device. Raises InvalidRequest when it would shrink."""
        self.check_writable()
        if blocks > MAX_DATA_BLOCK + 1:
            raise InvalidRequest(f"{blocks} data blocks are more than the format can address ({MAX_DATA_BLOCK + 1})")
        if blocks != self._maps.data.nr_blocks:
            self._maps.data.extend(blocks)
            self.changed = True

    def resize_metadata(self, blocks: int) -> None:
        """Grow the metadata device; what exceeds the format's 15.875 GiB is not used.

        Raises:
            InvalidRequest: it would shrink.
        """
        self.check_writable()
        blocks = min(blocks, MAX_METADATA_BITMAPS * ENTRIES_PER_BITMAP)
        if blocks != self._store.counts.nr_blocks:
            self._store.counts.extend(blocks)
            self.changed = True

    def allocate_data(self, count: int) -> tuple[int, int]:
        """Take a free run of at most `count` data blocks: (first, length). Raises OutOfDataSpace when none is free."""
        self.check_writable()
        begin, length = self._maps.data.allocate(count)
        if not length:
            raise OutOfDataSpace(f"all {self.data_blocks} data blocks are in use or wait for a commit to be free")
        self.changed = True
        return begin, length

    def release_data(self, dblock: int, length: int) -> None:
        """Give back what `allocate_data` gave and `insert` did not take."""
        self._maps.data.decrement_run(dblock, length)

    def check_writable(self) -> None:
        if self._read_only:
            raise PoolIoError("the metadata is open for reading only")

    # ------------------------------------------------------------------ references from leaves

    def _retain_data(self, leaf: Node) -> None:
        for begin, length in data_runs(leaf.values):
            self._maps.data.increment_run(begin, length)

    def _release_data(self, leaf: Node) -> None:
        self.release_values(leaf.values)

    def release_values(self, values: array[int]) -> None:
        for begin, length in data_runs(values):
            self._maps.data.decrement_run(begin, length)

    def _retain_subtrees(self, leaf: Node) -> None:
        for root in leaf.values:
            self._store.counts.increment(root)

    def _release_subtrees(self, leaf: Node) -> None:
        for root in leaf.values:
            self.subtrees.destroy(root)

    # ------------------------------------------------------------------ transaction

    def commit(self) -> list[tuple[int, int]]:
        """Make everything so far durable; block 0 is written last.

        Returns:
            Runs (first data block, length) that nothing uses any more since this commit.
        """
        if not self.changed:
            return []
        self.check_writable()
        self._write_details()
        self._maps.update_trees(self._superblock)
        self._store.flush_nodes(self._maps.metadata_blocks(self._superblock))
        self._store.write_first_block(self._superblock.pack())
        freed = self._maps.data.freed_runs()
        self._end_transaction()
        return freed

    def _write_details(self) -> None:
        superblock = self._superblock
        for thin_id in sorted(self._changed_thins):
            words = self._changed_thins[thin_id].details.to_words()
            superblock.details_root = self._details.insert(superblock.details_root, thin_id, *words)

    def _end_transaction(self) -> None:
        self._store.counts.end_transaction()
        self._store.counts.seek_free_run(_NEIGHBOURS)
        self._maps.data.end_transaction()
        for thin in self._changed_thins.values():
            thin.changed = thin.details_changed = False
        self._changed_thins.clear()
        self.changed = False

    def abort(self) -> None:
        """Back to the last commit: drop everything in memory and read block 0 again.

        Devices with uncommitted changes are marked (`lost_changes`). Raises what `open` raises when even that fails.
        """
        self._store.reset()
        self._superblock = self._read_superblock(self._device, self._read_only, None)
        self._maps.load(self._superblock)
        self.changed = False
        self._changed_thins.clear()
        for thin_id, thin in list(self._thins.items()):
            thin.lost_changes |= thin.changed
            thin.changed = thin.details_changed = False
            thin.forget_leaf()
            try:
                thin.details = self._stored_details(thin_id)
                thin.root = self._subtree_root(thin_id)
            except NoSuchThin:
                del self._thins[thin_id]

    def close(self) -> None:
        """Drop what is cached. Neither commits nor closes the device."""
        self._store.reset()
        self._thins.clear()
        self._changed_thins.clear()
