"""Crash explorer: run a script on a recorded pool, then open what a crash at any moment would have left.

    script ──► pool on two recording devices ──► one journal of writes, zeros, discards, copies and flushes
          └──► model, copied at every commit
    crash point ──► images of both devices ──► open ──► must equal the model at a commit not older than the last flush

A commit *boundary* is a write of the superblock (block 0 of the metadata). At a crash point the pool must come back
at a boundary that was issued before it, and not older than the last one that was flushed. Of data written in place
since the boundary, any sector may be there or not; nothing else may differ. The recount must find no leak.

Two kinds of images are tried at each point: everything asked for up to the point, and what was flushed plus a seeded
part of the rest, with writes torn at sectors.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from cowfs.blockdev import BlockDevice, MemoryDevice
from cowfs.faults.disk import FaultyDevice
from cowfs.pool import Pool, PoolStatus, PoolTable, ThinDevice
from cowfs.recording.journal import Journal, RecordingDevice
from cowfs.testing.blockdev import memory_device
from cowfs.testing.judges import recount_findings
from cowfs.testing.model import Block, ModelState, ModelThin, PoolModel
from cowfs.units import METADATA_BLOCK_BYTES, SECTOR_BYTES, Sectors

METADATA = "metadata"
DATA = "data"

OpenPool = Callable[[BlockDevice, BlockDevice, PoolTable], Pool]


@dataclass(slots=True)
class Step:
    """One operation of the script: where it ended in the journal, and what every block held then."""

    what: str
    end: int
    contents: dict[Block, bytes]


@dataclass(slots=True)
class Boundary:
    """A commit: `issued` just after the superblock's write, `durable` just after the flush that follows it.

    `step` is the one at whose end the pool was in this state.
    """

    step: int
    issued: int
    durable: int
    state: ModelState


@dataclass(slots=True)
class Explored:
    """What an exploration tried."""

    steps: int = 0
    boundaries: int = 0
    entries: int = 0
    prefixes: int = 0
    subsets: int = 0  # those that are not as their prefix
    reused: int = 0  # reopened for writing, written, committed and checked again

    def __str__(self) -> str:
        return (
            f"{self.steps} operations, {self.boundaries} commits, {self.entries} journal entries: "
            f"{self.prefixes} prefixes and {self.subsets} torn subsets reopened, {self.reused} of them written on"
        )


class CrashRun:
    """A recorded run of a pool and its model.

    Args:
        open_pool: opens a pool on two devices; called again for every crash image.
        data_blocks: enough that the script never fills the pool: a commit in the middle of a write has no model.
        seed: of the random script and of the subsets.

    The data device starts full of old bytes, so that whatever is provisioned must be seen to be zeroed.
    """

    def __init__(
        self,
        open_pool: OpenPool,
        *,
        seed: int,
        data_blocks: int = 96,
        metadata_blocks: int = 192,
        block_sectors: int = 128,
        thin_blocks: int = 12,
    ) -> None:
        self.rng = random.Random(seed)  # noqa: S311
        self.seed = seed
        self.block_bytes = block_sectors * SECTOR_BYTES
        self.thin_blocks = thin_blocks
        self.journal = Journal()
        self.table = PoolTable(Sectors(data_blocks * block_sectors), METADATA, DATA, Sectors(block_sectors))
        self.model = PoolModel(data_blocks, self.block_bytes)
        self.steps: list[Step] = []
        self.boundaries: list[Boundary] = []
        self._open_pool = open_pool
        metadata = MemoryDevice(metadata_blocks * METADATA_BLOCK_BYTES)
        data = memory_device(b"\xee" * (data_blocks * self.block_bytes))
        self.pool = open_pool(
            RecordingDevice(metadata, self.journal, METADATA), RecordingDevice(data, self.journal, DATA), self.table
        )
        self._thins: dict[int, ThinDevice] = {}
        self._note("open", 0, [self.model.state.copy()])

    # ------------------------------------------------------------------ the script

    def run(self, what: str, on_pool: Callable[[], object], on_model: Callable[[], object]) -> None:
        """One operation on both sides; what it commits is its result, or first what was there before it."""
        begin = len(self.journal.entries)
        before = self.model.state.copy()
        on_pool()
        on_model()
        self._note(what, begin, [before, self.model.state.copy()])

    def _note(self, what: str, begin: int, states: list[ModelState]) -> None:
        contents = self.steps[-1].contents if self.steps else {}
        now = {}
        for block in self.model.state.blocks() | self.model.committed.blocks():
            content = bytes(block.content)
            now[block] = contents[block] if contents.get(block) == content else content  # share what did not change
        self.steps.append(Step(what, len(self.journal.entries), now))
        found = self._superblock_writes(begin)
        if len(found) > len(states) and what != "open":
            raise AssertionError(f"{what} committed {len(found)} times, and the model knows {len(states)} states")
        # The last commit is of what the operation did, one before it of what there was, which the step before knows.
        step = len(self.steps)
        for (issued, durable), state in zip(reversed(found), reversed(states), strict=False):
            step -= 1
            self.boundaries.append(Boundary(step, issued, durable, state))
        self.boundaries.sort(key=lambda boundary: boundary.issued)

    def _superblock_writes(self, begin: int) -> list[tuple[int, int]]:
        entries = self.journal.entries
        found = []
        for index in range(begin, len(entries)):
            entry = entries[index]
            if entry.device == METADATA and entry.operation == "write" and entry.offset == 0:
                flushed = next(
                    i
                    for i in range(index, len(entries))
                    if (entries[i].device, entries[i].operation) == (METADATA, "flush")
                )
                found.append((index + 1, flushed + 1))
        return found

    def thin(self, thin_id: int) -> ThinDevice:
        if thin_id not in self._thins:
            length_sectors = self.thin_blocks * self.block_bytes // SECTOR_BYTES
            self._thins[thin_id] = self.pool.activate(f"thin-{thin_id}", thin_id, length_sectors)
        return self._thins[thin_id]

    def write(self, thin_id: int, offset: int, data: bytes) -> None:
        thin = self.thin(thin_id)
        self.run(
            f"write {thin_id} {offset}+{len(data)}",
            lambda: thin.pwrite(offset, data),
            lambda: self.model.write(thin_id, offset, data),
        )

    def discard(self, thin_id: int, offset: int, length: int) -> None:
        thin = self.thin(thin_id)
        self.run(
            f"discard {thin_id} {offset}+{length}",
            lambda: thin.discard(offset, length),
            lambda: self.model.discard(thin_id, offset, length),
        )

    def flush(self, thin_id: int) -> None:
        """A commit when the thin changed; the model follows the journal."""
        thin = self.thin(thin_id)
        before = len(self.journal.entries)
        self.run(
            f"flush {thin_id}",
            thin.flush,
            lambda: self.model.commit() if self._superblock_writes(before) else None,
        )

    def message(self, text: str) -> None:
        name, *words = text.split()
        arguments = [int(word) for word in words]
        if name == "delete" and arguments[0] in self._thins:
            self._thins.pop(arguments[0]).close()
        self.run(text, lambda: self.pool.message(text), lambda: getattr(self.model, name)(*arguments))

    def random_steps(self, count: int) -> None:
        """Operations of all kinds, by the run's seed."""
        self.message("create_thin 0")
        for _ in range(count):
            self._random_step()

    def _random_step(self) -> None:
        rng = self.rng
        ids = sorted(self.model.state.thins)
        thin_id = rng.choice(ids)
        unused = next(i for i in range(100) if i not in ids)
        if self.model.free_blocks() < 8:
            self.message(f"delete {rng.choice(ids[1:])}" if len(ids) > 1 else "set_transaction_id 0 0")
            return
        choice = rng.choices(
            ["write", "overwrite", "discard", "flush", "snap", "create", "delete", "transaction", "held"],
            [8, 4, 3, 3, 3, 1, 1, 1, 1],
        )[0]
        if choice in ("write", "overwrite"):
            self._random_write(thin_id, whole=choice == "overwrite")
        elif choice == "discard":
            begin = rng.randrange(self.thin_blocks)
            self.discard(thin_id, begin * self.block_bytes, min(3, self.thin_blocks - begin) * self.block_bytes)
        elif choice == "flush":
            self.flush(thin_id)
        elif choice == "snap" and len(ids) < 5:
            self.message(f"create_snap {unused} {thin_id}")
        elif choice == "create" and len(ids) < 5:
            self.message(f"create_thin {unused}")
        elif choice == "delete" and len(ids) > 1:
            self.message(f"delete {thin_id}")
        elif choice == "transaction":
            old = self.model.state.transaction_id
            self.message(f"set_transaction_id {old} {old + 1}")
        elif choice == "held":
            self.message("release_metadata_snap" if self.model.state.held else "reserve_metadata_snap")

    def _random_write(self, thin_id: int, *, whole: bool) -> None:
        rng = self.rng
        size = self.thin_blocks * self.block_bytes
        if whole:
            offset = rng.randrange(self.thin_blocks) * self.block_bytes
            length = self.block_bytes * rng.randint(1, 3)
        else:
            offset = rng.randrange(size // SECTOR_BYTES) * SECTOR_BYTES
            length = rng.randint(1, 2 * self.block_bytes // SECTOR_BYTES) * SECTOR_BYTES
        length = min(length, size - offset)
        # Every sector says which write it is from.
        stamp = len(self.steps).to_bytes(4, "big") * (SECTOR_BYTES // 4)
        self.write(thin_id, offset, stamp * (length // SECTOR_BYTES))

    # ------------------------------------------------------------------ the crash points

    def explore(self, *, every: int = 1, subsets: int = 1, reuse_every: int = 16) -> Explored:
        """Try crash points; raises AssertionError with the seed, the point and the step at the first bad one.

        Args:
            every: try each n-th journal position only.
            subsets: torn subsets per position; one that is as the prefix is not looked at again.
            reuse_every: go on writing to each n-th reopened pool.
        """
        done = Explored(len(self.steps), len(self.boundaries), len(self.journal.entries))
        begin = self.boundaries[0].durable  # before the first commit there is no state to recover
        journal = self.journal
        flushed = {name: journal.image(name, journal.durable_position(name, begin)) for name in (METADATA, DATA)}
        torn = {name: bytearray() for name in flushed}
        data_images = journal.images(DATA, begin)
        for (position, metadata), (_, data) in zip(journal.images(METADATA, begin), data_images, strict=True):
            for name, image in ((METADATA, metadata), (DATA, data)):
                if journal.durable_position(name, position) == position:
                    flushed[name][:] = image
            if (position - begin) % every:
                continue
            reuse = done.prefixes % reuse_every == 0
            self._judge(f"prefix {position}", position, metadata, data, reuse=reuse)
            done.prefixes += 1
            done.reused += reuse
            for number in range(subsets):
                rng = random.Random(f"{self.seed} {position} {number}")  # noqa: S311
                for name, image in torn.items():
                    journal.torn_image(name, position, rng, base=flushed[name], into=image)
                if torn[METADATA] != metadata or torn[DATA] != data:
                    self._judge(f"subset {number} at {position}", position, torn[METADATA], torn[DATA], reuse=False)
                    done.subsets += 1
        return done

    def _judge(self, what: str, position: int, metadata: bytearray, data: bytearray, *, reuse: bool) -> None:
        step = next(i for i, step in enumerate(self.steps) if step.end >= position)
        try:
            # To go on with a pool takes a copy; one that is only read has nothing to write.
            devices = [memory_device(image) if reuse else _unwritable(image) for image in (metadata, data)]
            self._judge_images(position, step, *devices, reuse=reuse)
        except (AssertionError, OSError) as error:
            raise AssertionError(
                f"seed {self.seed}, {what} of {len(self.journal.entries)}, in step {step} "
                f"({self.steps[step].what}): {error}"
            ) from error

    def _judge_images(self, position: int, step: int, metadata: BlockDevice, data: BlockDevice, *, reuse: bool) -> None:
        findings = recount_findings(metadata, strict=True)
        if findings:
            raise AssertionError("; ".join(findings))
        pool = self._open_pool(metadata, data, self.table if reuse else self.table.replace(read_only=True))
        durable = max(i for i, boundary in enumerate(self.boundaries) if boundary.durable <= position)
        candidates = [boundary for boundary in self.boundaries[durable:] if boundary.issued <= position]
        problems = [self._difference(pool, boundary, step) for boundary in candidates]
        if all(problems):
            raise AssertionError(
                "; ".join(f"not commit of step {b.step}: {p}" for b, p in zip(candidates, problems, strict=True))
            )
        if reuse:
            self._write_on(pool, metadata)

    def _difference(self, pool: Pool, boundary: Boundary, step: int) -> str:
        """What keeps an open pool from being at a boundary; empty when it is."""
        state = boundary.state
        status = pool.status(flush=False)
        if not isinstance(status, PoolStatus):
            return f"its status is {status.value}"
        if pool.thin_ids() != sorted(state.thins):
            return f"thins are {pool.thin_ids()}, not {sorted(state.thins)}"
        if status.transaction_id != state.transaction_id or (status.held_root is not None) != state.held:
            return f"transaction id {status.transaction_id}, held {status.held_root}"
        if status.used_data_blocks != len(state.blocks()):
            return f"{status.used_data_blocks} data blocks used, not {len(state.blocks())}"
        for thin_id, thin in state.thins.items():
            problem = self._thin_difference(pool, thin_id, thin, boundary.step, step)
            if problem:
                return f"thin {thin_id}: {problem}"
        return ""

    def _thin_difference(self, pool: Pool, thin_id: int, thin: ModelThin, first_step: int, last_step: int) -> str:
        length_sectors = self.thin_blocks * self.block_bytes // SECTOR_BYTES
        device = pool.activate(f"crashed-{thin_id}", thin_id, length_sectors, read_only=True)
        mapped = [v for e in device.extents() for v in range(e.vblock, e.vblock + e.length)]
        if mapped != sorted(thin.mappings):
            device.close()
            return f"maps {mapped}, not {sorted(thin.mappings)}"
        content = device.pread(0, device.size_bytes)
        device.close()
        for vblock in range(self.thin_blocks):
            found = content[vblock * self.block_bytes : (vblock + 1) * self.block_bytes]
            mapping = thin.mappings.get(vblock)
            if mapping is None:
                allowed = [bytes(self.block_bytes)]
            else:
                held = (step.contents.get(mapping.block) for step in self.steps[first_step : last_step + 1])
                allowed = [versions for versions in held if versions is not None]
            bad = _foreign_sector(found, allowed)
            if bad is not None:
                return f"block {vblock}: sector {bad} holds what was never written there"
        return ""

    def _write_on(self, pool: Pool, metadata: BlockDevice) -> None:
        """A crashed pool must also be fit to go on with."""
        for thin_id in pool.thin_ids():
            device = pool.activate(f"again-{thin_id}", thin_id, self.thin_blocks * self.block_bytes // SECTOR_BYTES)
            device.pwrite(self.block_bytes // 2, bytes([thin_id + 1]) * self.block_bytes)
            device.flush()
            device.close()
        findings = recount_findings(metadata, strict=True)
        if findings:
            raise AssertionError("after writing on: " + "; ".join(findings))


def _unwritable(image: bytearray) -> BlockDevice:
    device = FaultyDevice(MemoryDevice(image))
    device.fail("write", "discard")
    return device


def _foreign_sector(found: bytes, allowed: list[bytes]) -> int | None:
    """The first sector whose content is in none of the allowed versions of the block."""
    if found in allowed:
        return None
    for begin in range(0, len(found), SECTOR_BYTES):
        end = begin + SECTOR_BYTES
        if all(version[begin:end] != found[begin:end] for version in allowed):
            return begin // SECTOR_BYTES
    return None
