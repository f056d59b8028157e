"""Directories: finding, adding and removing names, and listing them in an order that survives changes.

A directory is a file of blocks of entries. One that outgrows its first block becomes hash-indexed, on volumes that
have dir_index: `htree` says how. Lookups and inserts then touch one block, whatever the size. Parsed blocks are
kept, bounded; a changed block is put into the metadata cache at once.

Damage. A block that makes no sense hides only its own names, from the damage on: the others are found and listed, and
then a listing ends with the error, so that nothing passes for complete that is not. A directory whose index is damaged
is read block by block, as if there were none; names can be removed, but none can be added.

Listing. Where an index exists or may come to exist, names come in the order of their hashes, as in the kernel: so an
entry that a split moves to another block is neither listed twice nor missed. Elsewhere entries never move, and come
in the order of the blocks. The cookie is 1 for `.`, 2 for `..`, and 3 plus the position in that order.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache

from cowfs.errors import FilesystemError
from cowfs.ext4.files.file_map import FileMaps
from cowfs.ext4.files.inline import InlineData
from cowfs.ext4.files.inodes import Inode
from cowfs.ext4.format import htree, layout
from cowfs.ext4.format.directory_block import (
    HEADER,
    DamagedBlock,
    DirectoryBlock,
    Entry,
    checksum_fits,
    entries_before_damage,
    entries_in,
    entry_bytes,
)
from cowfs.ext4.format.htree import DamagedIndex, Index, Node
from cowfs.ext4.library.filesystem import Filesystem, os_error
from cowfs.ext4.space.allocator import Allocator
from cowfs.ext4.space.block_map import Segment

_PARSED_BLOCKS_MAX = 2048
_HASHES_MAX = 256
_HALF_MD4 = 1
_FIRST_COOKIE = 3


class Directories:
    """All directories of one volume. Names are bytes; whether they are legal is the caller's business."""

    def __init__(self, fs: Filesystem, allocator: Allocator, maps: FileMaps, inline: InlineData) -> None:
        self._fs = fs
        self._allocator = allocator
        self._maps = maps
        self._inline = inline
        self._parsed: OrderedDict[tuple[int, int], DirectoryBlock] = OrderedDict()
        self._max_levels = 3 if fs.has_large_directories else 2
        self._hash = fs.ffi.new("uint32_t[2]")
        # A name is looked for a few times before it is made.
        self._hash_of: Callable[[int, bytes], tuple[int, int]] = lru_cache(_HASHES_MAX)(self._make_hash)
        self._unsigned = 3 if fs.super.s_flags & layout.FLAG_UNSIGNED_HASH else 0

    # Finding.

    def find(self, directory: Inode, name: bytes) -> Entry | None:
        """Also in a damaged block, before the place of damage: see `check_whole`."""
        try:
            place = self._locate(directory, name)
        except FilesystemError as error:
            for logical in self._candidates(directory, name):
                for _, entry in self._readable(directory, logical):
                    if entry.name == name:
                        directory.damage = error.message
                        return entry
            raise
        return place[1].find(name) if place else None

    def check_whole(self, directory: Inode, name: bytes) -> None:
        """Raises FilesystemError (EUCLEAN): a name that is found is in a damaged block, and must stay as it is."""
        if directory.damage:
            self._locate(directory, name)

    def parent(self, directory: Inode) -> int:
        """The inode of `..`."""
        index = self._usable_index(directory)
        if index is not None:
            return index.parent
        if directory.is_index_damaged:
            first = self._fs.cache.read(self._physical(directory, 0))
        else:
            first = next(self.leaf_data(directory), b"")
        for entry in self.entries_of(first, has_tail=self._has_tail and not directory.is_index_damaged):
            if entry.name == b"..":
                return entry.inode
        raise self._fs.damaged(f"directory {directory.number} has no `..`")

    def is_empty(self, directory: Inode) -> bool:
        if not self._blocks(directory):
            raise self._fs.damaged(f"directory {directory.number} has no blocks")
        for logical in self._leaves(directory):
            block = self._block(directory, logical)
            if len(block) > 2 or any(entry.name not in (b".", b"..") for entry in block.entries()):
                return False
        return True

    def _locate(self, directory: Inode, name: bytes) -> tuple[int, DirectoryBlock] | None:
        """The block that has a name, and its number in the directory.

        Raises:
            FilesystemError (EUCLEAN): it is not found, and a damaged block may have it.
        """
        damage: FilesystemError | None = None
        for logical in self._candidates(directory, name):
            try:
                block = self._block(directory, logical)
            except FilesystemError as error:
                damage = error
                continue
            if block.find(name):
                return logical, block
        if damage is not None:
            raise damage
        return None

    def _candidates(self, directory: Inode, name: bytes) -> Iterator[int]:
        """The leaves that can have a name: with an index one, but for equal hashes across a border of blocks."""
        index = self._usable_index(directory)
        if index is None:
            yield from self._leaves(directory)
            return
        hash_ = self._hash_of(index.hash_version, name)[0]
        path = index.path(hash_)
        while True:
            node, slot = path[-1]
            yield node.children[slot]
            following = index.advance(path)
            if following is None or following & ~1 != hash_:
                return

    # Changing.

    def initialise(self, directory: Inode, parent: int) -> None:
        """Give a new directory its first block, with `.` and `..`. Raises OSError (ENOSPC)."""
        kind = 2 if self._fs.has_file_types else 0
        entries = [Entry(b".", directory.number, kind), Entry(b"..", parent, kind)]
        self._append(directory, DirectoryBlock.packed(entries, self._fs.block_bytes, has_tail=self._has_tail))

    def add(self, directory: Inode, name: bytes, inode: int, mode: int) -> None:
        """Add a name that is not there yet.

        Raises:
            OSError (ENOSPC): no block, or the index is full; the directory is as it was, but perhaps larger.
            FilesystemError (EUCLEAN): the index is damaged.
        """
        if directory.is_inline:
            self._inline.move_out(directory)
        entry = Entry(name, inode, layout.file_type_code(mode) if self._fs.has_file_types else 0)
        if directory.flags & layout.INODE_FLAG_INDEX and not self._fs.has_dir_index:
            directory.flags &= ~layout.INODE_FLAG_INDEX  # our insert will not keep the index right
        if not self._is_indexed(directory):
            if self._add_linear(directory, entry):
                return
            self._make_index(directory)
        self._add_indexed(directory, entry)

    def remove(self, directory: Inode, name: bytes) -> None:
        """Remove an existing name."""
        if directory.is_inline:
            self._set_inline_entry(directory, name, 0, 0)
            return
        place = self._locate(directory, name)
        assert place is not None
        logical, block = place
        block.remove(name)
        self._write(directory, logical, block)

    def replace(self, directory: Inode, name: bytes, inode: int, mode: int) -> None:
        """Let an existing name lead to another inode."""
        file_type = layout.file_type_code(mode) if self._fs.has_file_types else 0
        if directory.is_inline:
            self._set_inline_entry(directory, name, inode, file_type)
            return
        place = self._locate(directory, name)
        assert place is not None
        logical, block = place
        block.replace(name, inode, file_type)
        self._write(directory, logical, block)

    def prepare_to_set_parent(self, directory: Inode) -> None:
        """Raises FilesystemError (EUCLEAN): `..` cannot be changed, since its block is damaged."""
        if directory.is_inline:
            return
        if self._is_indexed(directory):
            self._index(directory)
        elif not self._block(directory, 0).find(b".."):
            raise self._fs.damaged(f"directory {directory.number} has no `..`")

    def set_parent(self, directory: Inode, parent: int) -> None:
        """Change `..`."""
        if directory.is_inline:
            self._inline.set_parent(directory, parent)
            self.forget(directory)
            return
        if self._is_indexed(directory):
            index = self._index(directory)
            index.parent = parent
            self._write_node(directory, index, index.root)
            return
        block = self._block(directory, 0)
        block.replace(b"..", parent, 2 if self._fs.has_file_types else 0)
        self._write(directory, 0, block)

    def forget(self, directory: Inode) -> None:
        """Drop what is cached of a directory that is being freed."""
        directory.index = None
        for logical in self._linear_blocks(directory):
            self._parsed.pop((directory.number, logical), None)

    def _set_inline_entry(self, directory: Inode, name: bytes, inode: int, file_type: int) -> None:
        self._inline.set_entry(directory, name, inode, file_type)
        self.forget(directory)

    # Linear directories.

    def _add_linear(self, directory: Inode, entry: Entry) -> bool:
        """False when the directory has outgrown its block and should be indexed."""
        blocks = self._blocks(directory)
        for logical in range(blocks):
            block = self._block(directory, logical)
            if block.add(entry):
                self._write(directory, logical, block)
                return True
        if blocks == 1 and self._fs.has_dir_index:
            return False
        self._append(directory, DirectoryBlock.packed([entry], self._fs.block_bytes, has_tail=self._has_tail))
        return True

    def _make_index(self, directory: Inode) -> None:
        """Move the names of the only block to a second one, and make the first one the root of an index."""
        first = self._block(directory, 0)
        parent = self.parent(directory)
        entries = [entry for entry in first.entries() if entry.name not in (b".", b"..")]
        leaf = DirectoryBlock.packed(entries, self._fs.block_bytes, has_tail=self._has_tail)
        kind = 2 if self._fs.has_file_types else 0
        index = Index(Node(0, [0], [1]), self._default_hash_version(), 0, parent, kind)
        self._append(directory, leaf)
        directory.flags |= layout.INODE_FLAG_INDEX
        directory.index = index
        del self._parsed[directory.number, 0]
        self._write_node(directory, index, index.root)

    # Indexed directories.

    def _add_indexed(self, directory: Inode, entry: Entry) -> None:
        index = self._index(directory)
        hash_ = self._hash_of(index.hash_version, entry.name)[0]
        while True:
            node, slot = index.path(hash_)[-1]
            logical = node.children[slot]
            block = self._block(directory, logical)
            if block.add(entry):
                self._write(directory, logical, block)
                return
            self._split_leaf(directory, index, hash_, block)

    def _split_leaf(self, directory: Inode, index: Index, hash_: int, block: DirectoryBlock) -> None:
        """Move the upper half of the hashes of a leaf to a new one."""
        hashed = sorted((self._hash_of(index.hash_version, entry.name)[0], entry) for entry in block.entries())
        if len(hashed) < 2:
            raise self._fs.damaged(f"directory {directory.number} has a full block with {len(hashed)} entries")
        middle = _balanced([entry_bytes(len(entry.name)) for _, entry in hashed])
        self._make_slot(directory, index, hash_)
        node, slot = index.path(hash_)[-1]
        size, tail = self._fs.block_bytes, self._has_tail
        upper = DirectoryBlock.packed([entry for _, entry in hashed[middle:]], size, has_tail=tail)
        lower = DirectoryBlock.packed([entry for _, entry in hashed[:middle]], size, has_tail=tail)
        logical = self._append(directory, upper)
        first = hashed[middle][0]
        continues = first == hashed[middle - 1][0]
        node.hashes.insert(slot + 1, first | continues)
        node.children.insert(slot + 1, logical)
        self._write(directory, node.children[slot], lower)
        self._write_node(directory, index, node)

    def _make_slot(self, directory: Inode, index: Index, hash_: int) -> None:
        """Split index nodes until the one above a hash's leaf has room. The index is right after every step."""
        while True:
            path = index.path(hash_)
            full = [len(node.hashes) >= self._limit(node) for node, _ in path]
            if not full[-1]:
                return
            if all(full):
                self._grow(directory, index)
                continue
            depth = max(depth for depth in range(len(path)) if not full[depth])
            self._split_node(directory, index, path[depth], path[depth + 1][0])

    def _limit(self, node: Node) -> int:
        return htree.limit(self._fs.block_bytes, is_root=node.block == 0, has_tail=self._has_tail)

    def _grow(self, directory: Inode, index: Index) -> None:
        """Add a level: the root's slots move to a node below it."""
        if index.levels + 1 >= self._max_levels:
            raise os_error(errno.ENOSPC)
        root = index.root
        logical = self._append(directory, None)
        child = Node(logical, root.hashes, root.children, root.nodes)
        root.hashes, root.children, root.nodes = [0], [logical], [child]
        index.levels += 1
        self._write_node(directory, index, child)
        self._write_node(directory, index, root)

    def _split_node(self, directory: Inode, index: Index, above: tuple[Node, int], node: Node) -> None:
        parent, slot = above
        middle = len(node.hashes) // 2
        logical = self._append(directory, None)
        upper = Node(logical, node.hashes[middle:], node.children[middle:], node.nodes[middle:])
        parent.hashes.insert(slot + 1, upper.hashes[0])
        parent.children.insert(slot + 1, logical)
        parent.nodes.insert(slot + 1, upper)
        upper.hashes[0] = 0
        del node.hashes[middle:], node.children[middle:], node.nodes[middle:]
        for changed in (upper, node, parent):
            self._write_node(directory, index, changed)

    def _is_indexed(self, directory: Inode) -> bool:
        has_index = bool(directory.flags & layout.INODE_FLAG_INDEX) and not directory.is_inline
        return has_index and self._fs.has_dir_index

    def _index(self, directory: Inode) -> Index:
        """The index of an indexed directory. Raises FilesystemError (EUCLEAN): it is damaged."""
        index = self._usable_index(directory)
        if index is None:
            raise self._fs.damaged(f"directory {directory.number} has a damaged index and cannot be changed like this")
        return index

    def _usable_index(self, directory: Inode) -> Index | None:
        """The index of a directory; None if it has none, or a damaged one."""
        if directory.index is None and self._is_indexed(directory) and not directory.is_index_damaged:
            self._maps.load(directory)
            try:
                directory.index = htree.load(
                    lambda logical: self._fs.cache.read(self._physical(directory, logical)),
                    directory.checksum_seed if self._has_tail else None,
                    self._blocks(directory),
                    self._max_levels,
                )
            except (DamagedIndex, FilesystemError) as error:
                directory.is_index_damaged = True
                self._fs.note_damage(f"the index of directory {directory.number}: {error}; it is read without")
        return directory.index

    def _make_hash(self, version: int, name: bytes) -> tuple[int, int]:
        """(major, minor) hash."""
        found = self._hash
        self._fs.call(
            self._fs.c.ext2fs_dirhash,
            version + self._unsigned,
            name,
            len(name),
            self._fs.super.s_hash_seed,
            found,
            found + 1,
            doing="hash a name",
        )
        return found[0], found[1]

    def _default_hash_version(self) -> int:
        version: int = self._fs.super.s_def_hash_version
        return version if version <= 2 else _HALF_MD4

    # Listing.

    def walk(self, directory: Inode, cookie: int) -> Iterator[tuple[int, Entry]]:
        """(cookie, entry) of everything after a cookie.

        Raises:
            FilesystemError (EUCLEAN): after all that could be read, if there was something that could not, now or in
                an earlier part of the listing.
        """
        if not self._blocks(directory):
            return
        if cookie < 1:
            yield 1, Entry(b".", directory.number, 2)
        if cookie < 2:
            yield 2, Entry(b"..", self._parent_or_itself(directory), 2)
        position = max(cookie - _FIRST_COOKIE + 1, 0)
        if self._is_in_order_of_hashes(directory):
            found = self._walk_by_hash(directory, position)
        else:
            found = self._walk_by_offset(directory, position)
        for position, entry in found:
            if entry.name in (b".", b".."):
                continue
            if not entry.name or b"/" in entry.name or b"\0" in entry.name:
                directory.damage = f"ext4 is damaged: directory {directory.number} has the name {entry.name!r}"
                continue
            yield _FIRST_COOKIE + position, entry
        if directory.damage:
            raise FilesystemError(directory.damage, errno=errno.EUCLEAN)

    def _parent_or_itself(self, directory: Inode) -> int:
        """For a listing, in which `..` cannot be missed."""
        try:
            return self.parent(directory)
        except FilesystemError:
            return directory.number

    def _is_in_order_of_hashes(self, directory: Inode) -> bool:
        if self._is_indexed(directory):
            return self._usable_index(directory) is not None
        return self._fs.has_dir_index and self._blocks(directory) == 1

    def _walk_by_offset(self, directory: Inode, position: int) -> Iterator[tuple[int, Entry]]:
        size = self._fs.block_bytes
        first, begin = divmod(position, size)
        for logical in self._leaves(directory, first):
            for offset, entry in self._readable(directory, logical, begin if logical == first else 0):
                yield logical * size + offset, entry

    def _walk_by_hash(self, directory: Inode, position: int) -> Iterator[tuple[int, Entry]]:
        """Leaf by leaf. Where to go on is kept as a hash: whatever happens meanwhile, a path leads there."""
        hash_: int | None = position >> 32 << 1
        while hash_ is not None and self._blocks(directory):
            entries, version, hash_ = self._entries_at(directory, hash_)
            keyed = []
            for entry in entries:
                major, minor = self._hash_of(version, entry.name)
                keyed.append((major >> 1 << 32 | minor, entry))
            for key, entry in sorted(keyed):
                if key >= position:
                    yield key, entry

    def _entries_at(self, directory: Inode, hash_: int) -> tuple[list[Entry], int, int | None]:
        """The entries of the leaf of a hash and of those that continue it, the hash version, the next leaf's hash."""
        index = self._usable_index(directory)
        if index is None:
            return [entry for _, entry in self._readable(directory, 0)], self._default_hash_version(), None
        path = index.path(hash_)
        entries: list[Entry] = []
        while True:
            node, slot = path[-1]
            entries += [entry for _, entry in self._readable(directory, node.children[slot])]
            following = index.advance(path)
            if following is None or not following & 1:
                return entries, index.hash_version, following

    def _readable(self, directory: Inode, logical: int, begin: int = 0) -> list[tuple[int, Entry]]:
        """The entries of a block from an offset on, with their offsets; of a damaged one those before the damage."""
        try:
            return self._block(directory, logical).entries_from(begin)
        except FilesystemError as error:
            directory.damage = error.message
        with suppress(FilesystemError):
            data = self._read(directory, logical)
            if not self._has_tail or checksum_fits(data, directory.checksum_seed):
                return [item for item in entries_before_damage(data) if item[0] >= begin]
        return []

    # Blocks as they are.

    def leaf_data(self, directory: Inode) -> Iterator[bytes]:
        """The blocks with entries, checked but not parsed."""
        seed = directory.checksum_seed
        for logical in self._leaves(directory):
            data = self._read(directory, logical)
            if self._has_tail and not checksum_fits(data, seed):
                raise self._wrong_checksum(directory, logical)
            yield data

    def entries_of(self, data: bytes, *, has_tail: bool | None = None) -> Iterator[Entry]:
        """The entries of such a block."""
        try:
            yield from entries_in(data, has_tail=self._has_tail if has_tail is None else has_tail)
        except DamagedBlock as error:
            raise self._fs.damaged(f"a directory block: {error}") from None

    # Blocks.

    @property
    def _has_tail(self) -> bool:
        return self._fs.has_metadata_csum

    def _blocks(self, directory: Inode) -> int:
        """How many there are; a directory in its inode counts as the one block that it would be."""
        return 1 if directory.is_inline else directory.size // self._fs.block_bytes

    def _leaves(self, directory: Inode, first: int = 0) -> Iterator[int]:
        """Blocks with entries, from `first` on."""
        index = self._usable_index(directory)
        if index is not None:
            inner = set(index.blocks)
            return (logical for logical in range(first, self._blocks(directory)) if logical not in inner)
        blocks = self._linear_blocks(directory, first)
        if directory.is_index_damaged:
            return (logical for logical in blocks if not self._is_index_block(directory, logical))
        return blocks

    def _linear_blocks(self, directory: Inode, first: int = 0) -> Iterator[int]:
        """All blocks from `first` on; a hole, which only damage makes, has none."""
        if directory.is_inline:
            yield from range(first, 1)
            return
        end = self._blocks(directory)
        map_ = self._maps.load(directory)
        if end == 1:  # as most have it
            if first == 0 and map_.block(0) >= 0:
                yield 0
            return
        for segment in map_:
            if segment.written:
                yield from range(max(segment.logical, first), min(segment.logical + segment.length, end))

    def _is_index_block(self, directory: Inode, logical: int) -> bool:
        """Whether a block has no names but belongs to an index, where the index itself does not say so."""
        data = self._fs.cache.read(self._physical(directory, logical))
        inode, length, _name_length, _file_type = HEADER.unpack_from(data)
        if logical:
            return not inode and length == len(data)
        try:
            return all(entry.name in (b".", b"..") for entry in entries_in(data, has_tail=False))
        except DamagedBlock:
            return self._blocks(directory) > 1

    def _physical(self, directory: Inode, logical: int) -> int:
        block = self._maps.load(directory).block(logical)
        if block < 0:
            raise self._fs.damaged(f"directory {directory.number} has a hole at block {logical}")
        return block

    def _read(self, directory: Inode, logical: int) -> bytes:
        if directory.is_inline:
            return self._inline.directory_block(directory)
        return self._fs.cache.read(self._physical(directory, logical))

    def _block(self, directory: Inode, logical: int) -> DirectoryBlock:
        key = (directory.number, logical)
        block = self._parsed.get(key)
        if block is not None:
            self._parsed.move_to_end(key)
            return block
        data = self._read(directory, logical)
        try:
            block = DirectoryBlock(data, has_tail=self._has_tail)
        except DamagedBlock as error:
            raise self._fs.damaged(f"directory {directory.number}, block {logical}: {error}") from None
        if self._has_tail and not checksum_fits(data, directory.checksum_seed):
            raise self._wrong_checksum(directory, logical)
        self._keep(key, block)
        return block

    def _wrong_checksum(self, directory: Inode, logical: int) -> FilesystemError:
        return self._fs.damaged(f"directory {directory.number}, block {logical}: wrong checksum")

    def _keep(self, key: tuple[int, int], block: DirectoryBlock) -> None:
        self._parsed[key] = block
        if len(self._parsed) > _PARSED_BLOCKS_MAX:
            self._parsed.popitem(last=False)

    def _write(self, directory: Inode, logical: int, block: DirectoryBlock) -> None:
        self._keep((directory.number, logical), block)
        self._fs.cache.write(self._physical(directory, logical), block.checksummed(directory.checksum_seed))

    def _write_node(self, directory: Inode, index: Index, node: Node) -> None:
        seed = directory.checksum_seed if self._has_tail else None
        data = htree.store_node(node, index, directory.number, self._fs.block_bytes, seed)
        self._fs.cache.write(self._physical(directory, node.block), data)

    def _append(self, directory: Inode, block: DirectoryBlock | None) -> int:
        """Add a block at the end; None leaves it to the caller to write it. Raises OSError (ENOSPC)."""
        logical = self._blocks(directory)
        if logical >= self._maps.max_blocks(directory) or (logical + 1) * self._fs.block_bytes >= 2**31:
            raise os_error(errno.ENOSPC)
        if self._maps.load(directory).end > logical:
            raise self._fs.damaged(f"directory {directory.number} has blocks beyond its size")
        runs = self._allocator.allocate(1, self._maps.load(directory).before(logical))
        try:
            self._maps.add(directory, [Segment(logical, 1, runs[0].physical, True)])
        except BaseException:
            self._allocator.undo(runs)
            raise
        directory.size = (logical + 1) * self._fs.block_bytes
        if block is not None:
            self._write(directory, logical, block)
        return logical


def _balanced(sizes: list[int]) -> int:
    """Where to cut a list of sizes so that both sides are not empty and as equal as can be."""
    total, below = sum(sizes), 0
    best, best_difference = 1, total
    for index, size in enumerate(sizes[:-1], 1):
        below += size
        difference = abs(total - 2 * below)
        if difference < best_difference:
            best, best_difference = index, difference
    return best
