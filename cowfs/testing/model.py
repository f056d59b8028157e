"""What a pool should hold, as plain dicts: the in-memory truth that backends are compared with.

A thin is a dict from virtual block to `Mapping`; a mapping points to a `Block`, an object whose identity is the
data block. Sharing is identity; counting blocks is counting distinct objects. Content is written into the object in
place, so a snapshot of the dicts (`committed`) sees later overwrites of its blocks, as a disk would.

The rules of the kernel that show in figures are kept: a message that is refused commits nothing; a block may be taken
for shared when it no longer is (a mapping older than the thin's last snapshot is copied on write); a block freed since
the last commit is not used any more, and cannot be allocated yet.

The model knows nothing of metadata blocks: it never runs out of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from cowfs.errors import InvalidRequest, NoSuchThin, OutOfDataSpace, ThinBusy, ThinExists
from cowfs.units import MAX_THIN_ID


class Block:
    """One data block, by identity."""

    __slots__ = ("content",)

    def __init__(self, content: bytes | bytearray) -> None:
        self.content = bytearray(content)


@dataclass(frozen=True, slots=True)
class Mapping:
    block: Block
    time: int


@dataclass(slots=True)
class ModelThin:
    """`end` of a thin is not stored, as in a pool."""

    mappings: dict[int, Mapping] = field(default_factory=dict)
    snapshotted_time: int = 0

    def copy(self) -> ModelThin:
        return ModelThin(dict(self.mappings), self.snapshotted_time)

    def highest(self) -> int | None:
        return max(self.mappings, default=None)


@dataclass(slots=True)
class ModelState:
    """Everything that a commit makes durable."""

    data_blocks: int
    time: int = 0
    transaction_id: int = 0
    held: bool = False
    thins: dict[int, ModelThin] = field(default_factory=dict)
    # Blocks that a held metadata snapshot keeps from being reused: those mapped when it was taken.
    held_blocks: set[Block] = field(default_factory=set)

    def copy(self) -> ModelState:
        thins = {thin_id: thin.copy() for thin_id, thin in self.thins.items()}
        return ModelState(self.data_blocks, self.time, self.transaction_id, self.held, thins, set(self.held_blocks))

    def blocks(self) -> set[Block]:
        mapped = {mapping.block for thin in self.thins.values() for mapping in thin.mappings.values()}
        return mapped | self.held_blocks


class PoolModel:
    """A pool without a disk. Methods are named as in `cowfs.pool.Pool`, and raise the same errors."""

    def __init__(self, data_blocks: int, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.state = ModelState(data_blocks)
        self.committed = self.state.copy()
        self.active: set[int] = set()
        self.out_of_data_space = False

    # ------------------------------------------------------------------ figures

    def used_blocks(self) -> int:
        return len(self.state.blocks())

    def free_blocks(self) -> int:
        """Neither in use nor in use by the last commit: what can be allocated now."""
        return self.state.data_blocks - len(self.state.blocks() | self.committed.blocks())

    def thin(self, thin_id: int) -> ModelThin:
        thin = self.state.thins.get(thin_id)
        if thin is None:
            raise NoSuchThin(f"thin {thin_id} is not in the model")
        return thin

    # ------------------------------------------------------------------ messages

    def create_thin(self, thin_id: int) -> None:
        self._check_new(thin_id)
        self.state.thins[thin_id] = ModelThin(snapshotted_time=self.state.time)
        self.commit()

    def create_snap(self, thin_id: int, origin_id: int) -> None:
        self._check_new(thin_id)
        origin = self.thin(origin_id)
        self.state.time += 1
        origin.snapshotted_time = self.state.time
        self.state.thins[thin_id] = origin.copy()
        self.commit()

    def _check_new(self, thin_id: int) -> None:
        if not 0 <= thin_id <= MAX_THIN_ID:
            raise InvalidRequest(f"id {thin_id} is out of range")
        if thin_id in self.state.thins:
            raise ThinExists(f"thin {thin_id} exists")

    def delete(self, thin_id: int) -> None:
        self.thin(thin_id)
        if thin_id in self.active:
            raise ThinBusy(f"thin {thin_id} is active")
        del self.state.thins[thin_id]
        self.commit()

    def set_transaction_id(self, old: int, new: int) -> None:
        if old != self.state.transaction_id:
            raise InvalidRequest(f"the transaction id is not {old}")
        self.state.transaction_id = new
        self.commit()

    def reserve_metadata_snap(self) -> None:
        """Commits what was before it also when it is refused."""
        self.commit()
        if self.state.held:
            raise ThinBusy("a metadata snapshot is held")
        self.state.held = True
        self.state.held_blocks = self.state.blocks()
        self.commit()

    def release_metadata_snap(self) -> None:
        if not self.state.held:
            raise InvalidRequest("no metadata snapshot is held")
        self.state.held = False
        self.state.held_blocks = set()
        self.commit()

    # ------------------------------------------------------------------ transaction

    def commit(self) -> None:
        self.committed = self.state.copy()
        if self.free_blocks():
            self.out_of_data_space = False

    def crash(self) -> None:
        """The process dies: back to the last commit."""
        self.state = self.committed.copy()
        self.active.clear()
        self.out_of_data_space = False

    def grow(self, data_blocks: int) -> None:
        self.state.data_blocks = data_blocks
        self.commit()

    # ------------------------------------------------------------------ data

    def read(self, thin_id: int, offset: int, length: int) -> bytes:
        thin = self.thin(thin_id)
        parts = []
        for vblock, begin, end in self._pieces(offset, length):
            mapping = thin.mappings.get(vblock)
            parts.append(bytes(end - begin) if mapping is None else bytes(mapping.block.content[begin:end]))
        return b"".join(parts)

    def write(self, thin_id: int, offset: int, data: bytes) -> None:
        """Raises OutOfDataSpace with what came before the full block written."""
        thin = self.thin(thin_id)
        done = 0
        for vblock, begin, end in self._pieces(offset, len(data)):
            block = self._writable_block(thin, vblock)
            block.content[begin:end] = data[done : done + end - begin]
            done += end - begin

    def _writable_block(self, thin: ModelThin, vblock: int) -> Block:
        mapping = thin.mappings.get(vblock)
        if mapping is not None and mapping.time >= thin.snapshotted_time:
            return mapping.block
        if not self.free_blocks():
            self.commit()
            if not self.free_blocks():
                self.out_of_data_space = True
                raise OutOfDataSpace("no free data block in the model")
        block = Block(bytes(self.block_bytes) if mapping is None else mapping.block.content)
        thin.mappings[vblock] = Mapping(block, self.state.time)
        return block

    def discard(self, thin_id: int, offset: int, length: int) -> None:
        thin = self.thin(thin_id)
        first, last = -(-offset // self.block_bytes), (offset + length) // self.block_bytes
        for vblock in [vblock for vblock in thin.mappings if first <= vblock < last]:
            del thin.mappings[vblock]

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(virtual block, begin, end) of each part of a byte range, the last two inside the block."""
        end = offset + length
        while offset < end:
            vblock, begin = divmod(offset, self.block_bytes)
            size = min(end - offset, self.block_bytes - begin)
            yield vblock, begin, begin + size
            offset += size
