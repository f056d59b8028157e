"""Random scripts for pools, from a seed: mostly sensible, since a refused operation shows little.

A model of the pool is kept (`PoolModel`, with blocks of one byte), so that thins mostly exist and are not suspended,
ranges lie inside them, and a full pool is given room again. It need not be right in detail: backends say what happens.
"""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Final

from cowfs.errors import PoolError
from cowfs.testing.model import PoolModel
from cowfs.testing.script import Geometry
from cowfs.units import SECTOR_BYTES

SMALL_METADATA_BLOCKS: Final = 96  # few enough to be used up

# Verb -> weight. Reading verbs are cheap to check and frequent, since they show a difference near its cause.
_WEIGHTS: Final = {
    "write": 30.0,
    "read": 8.0,
    "discard": 8.0,
    "flush": 5.0,
    "create_thin": 4.0,
    "create_snap": 8.0,
    "delete": 5.0,
    "status": 8.0,
    "thin_status": 4.0,
    "extents": 4.0,
    "events": 3.0,
    "deactivate": 2.0,
    "suspend": 1.0,
    "suspend_pool": 1.0,
    "resume_pool": 1.0,
    "resize": 2.0,
    "set_transaction_id": 2.0,
    "refused": 1.0,
    "reserve_metadata_snap": 1.0,
    "release_metadata_snap": 1.0,
    "grow_data": 1.0,
    "grow_metadata": 1.0,
    "reopen": 2.0,
    "exhaust": 1.0,
    "exhaust_metadata": 1.0,
    "thin_ids": 1.0,
}
# What commits when it succeeds.
_COMMITTING: Final = (
    *("flush", "create_thin", "create_snap", "delete", "status", "thin_status", "extents", "thin_ids", "reopen"),
)
# Messages that no pool here carries out.
_REFUSED: Final = ("create_thin 16777216", "create_snap 20 21", "delete 20", f"set_transaction_id {2**64 - 1} 0")
_MOST_IDS: Final = 12


class Generator:
    """Scripts for one pool of a geometry that the seed decides; a second script continues where the first one ended."""

    def __init__(self, seed: int) -> None:
        self._rng = rng = random.Random(f"cowfs differential {seed}")  # noqa: S311
        self.geometry = Geometry(
            block=rng.choice([128, 128, 128, 256, 384]),
            data=rng.choice([12, 24, 40, 100]),
            metadata=rng.choice([SMALL_METADATA_BLOCKS, 256, 256, 1024]),
            thin=rng.choice([24 * 128, 24 * 128 + 16, 40 * 384]),
            low_water=rng.choice([0, 3]),
        )
        # Few thins and long transactions: what is freed in one, and not available before its end, shows much.
        self._churns = rng.random() < 0.5
        self._weights = self._choose_weights()
        self._model = PoolModel(self.geometry.data, 1)
        self._serial = 0
        self._sizes: dict[int, int] = {}  # of active thins [sectors]
        self._suspended: set[int] = set()
        self._pool_is_suspended = False
        self._due: list[tuple[int, str]] = []  # (length of the script, line): what is to come

    def _choose_weights(self) -> dict[str, float]:
        weights = dict(_WEIGHTS)
        if self._churns:
            weights |= {verb: weights[verb] / 8 for verb in _COMMITTING} | {"discard": 3 * weights["discard"]}
        if self.geometry.block & (self.geometry.block - 1):
            # Linux drops some discards of devices whose granularity is not a power of two.
            del weights["discard"]
        if self.geometry.metadata == SMALL_METADATA_BLOCKS:
            # How often a transaction takes the metadata below its low water mark and back is each backend's own.
            del weights["events"]
            weights["grow_metadata"] = 5
        else:
            del weights["exhaust_metadata"]
        return weights

    def script(self, steps: int) -> list[str]:
        self._forget_active()
        self._due.clear()
        lines: list[str] = []
        self._emit(lines, "create_thin 0")
        while len(lines) <= steps:
            if self._due and self._due[0][0] <= len(lines):
                self._emit(lines, self._due.pop(0)[1])
                continue
            (verb,) = self._rng.choices(list(self._weights), list(self._weights.values()))
            if not self._model.state.thins and self._rng.random() < 0.8:
                verb = "create_thin"
            self._emit_verb(lines, self._with_room(verb))
        return lines[: steps + 1]

    def _emit(self, lines: list[str], line: str) -> None:
        verb, *words = line.split()
        numbers = [int(word) for word in words]
        lines.append(line)
        with suppress(PoolError):
            self._follow(verb, numbers)

    def _with_room(self, verb: str) -> str:
        """In a full pool, now and then something that makes room instead of one more write."""
        if verb != "write" or self._model.free_blocks() or self._rng.random() < 0.6:
            return verb
        return self._rng.choice([verb for verb in ("discard", "delete", "grow_data") if verb in self._weights])

    def _emit_verb(self, lines: list[str], verb: str) -> None:
        rng = self._rng
        if verb == "refused":
            self._emit(lines, rng.choice(_REFUSED))
            return
        arguments = self._arguments(verb)
        if verb == "delete" and rng.random() < 0.7:
            self._emit(lines, f"deactivate {arguments[0]}")
        self._emit(lines, " ".join([verb, *map(str, arguments)]))
        if verb == "discard":
            # Freed and not committed: what is allocated now?
            for then in rng.choices(["write", "refused"], [3, 1], k=rng.randrange(5)):
                self._emit_verb(lines, then)
        elif verb in ("suspend", "suspend_pool") and rng.random() < 0.9:
            back = "resume_pool" if verb == "suspend_pool" else f"resume {arguments[0]}"
            self._due.append((len(lines) + rng.randrange(5), back))
            self._due.sort()

    def _arguments(self, verb: str) -> tuple[int, ...]:
        rng = self._rng
        if verb in ("write", "discard", "read"):
            thin_id = self._thin_id()
            offset, length = self._range(thin_id)
            return (thin_id, offset, length, self._next()) if verb == "write" else (thin_id, offset, length)
        if verb == "exhaust":
            return self._thin_id(), self._next()
        if verb == "exhaust_metadata":
            return (1000,)
        if verb == "create_thin":
            return (self._new_id(),)
        if verb == "create_snap":
            return self._new_id(), self._thin_id()
        if verb in ("delete", "flush", "suspend", "deactivate", "thin_status", "extents"):
            return (self._thin_id(),)
        if verb == "resize":
            return self._thin_id(), rng.choice([self.geometry.thin, self.geometry.thin + 128, 1024])
        if verb == "set_transaction_id":
            old = self._model.state.transaction_id
            return (old if rng.random() < 0.8 else old + 1), rng.randrange(1000)
        if verb == "grow_metadata" and self.geometry.metadata == SMALL_METADATA_BLOCKS:
            # By enough, since what a write leaves that meets the end of the metadata is declared to differ.
            return (64,)
        if verb in ("grow_data", "grow_metadata"):
            return (rng.choice([1, 8, 64]),)
        return ()

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def _range(self, thin_id: int) -> tuple[int, int]:
        rng = self._rng
        sectors = self._sizes.get(thin_id, self.geometry.thin) if rng.random() < 0.9 else self.geometry.thin
        size = sectors * SECTOR_BYTES
        block = self.geometry.block * SECTOR_BYTES
        if rng.random() < 0.5:
            offset = rng.randrange(-(-size // block)) * block
            length = rng.randint(1, 6) * block
        else:
            offset = rng.randrange(size)
            length = rng.choice([1, 512, 4096, block, 3 * block])
        return offset, max(1, min(length, size - offset))

    def _thin_id(self) -> int:
        usable = sorted(self._model.state.thins.keys() - self._suspended)
        return self._rng.choice(usable) if usable and self._rng.random() < 0.9 else self._rng.randrange(_MOST_IDS)

    def _new_id(self) -> int:
        most = 3 if self._churns else _MOST_IDS
        free = [thin_id for thin_id in range(most) if thin_id not in self._model.state.thins]
        return self._rng.choice(free) if free and self._rng.random() < 0.8 else self._rng.randrange(_MOST_IDS)

    # ------------------------------------------------------------------------------------------ the model

    def _forget_active(self) -> None:
        self._sizes.clear()
        self._suspended.clear()
        self._pool_is_suspended = False
        self._model.active.clear()

    def _follow(self, verb: str, numbers: list[int]) -> None:
        """Let the model do what the line says. Raises where it refuses."""
        model = self._model
        if verb in ("write", "discard", "exhaust", "read", "flush", "suspend", "resize", "extents"):
            self._follow_thin(verb, *numbers)
        elif verb in ("status", "thin_status", "thin_ids"):
            model.commit()
        elif verb == "deactivate":
            self._deactivate(numbers[0])
        elif verb == "resume":
            self._suspended.discard(numbers[0])
        elif verb in ("suspend_pool", "resume_pool"):
            self._pool_is_suspended = verb == "suspend_pool"
            model.commit()
        elif verb == "grow_data":
            self._pool_is_suspended = False
            model.grow(model.state.data_blocks + numbers[0])
        elif verb == "reopen":
            model.commit()
            self._forget_active()
        elif hasattr(model, verb):
            getattr(model, verb)(*numbers)

    def _follow_thin(self, verb: str, thin_id: int, *numbers: int) -> None:
        model, block = self._model, self.geometry.block * SECTOR_BYTES
        model.thin(thin_id)
        if self._pool_is_suspended:
            return
        model.active.add(thin_id)
        size = self._sizes.setdefault(thin_id, self.geometry.thin)
        if verb == "suspend":
            self._suspended.add(thin_id)
        elif verb == "resize":
            self._sizes[thin_id] = numbers[0]
        elif thin_id in self._suspended:
            return
        elif verb in ("flush", "extents"):
            model.commit()
        elif verb == "exhaust":
            model.write(thin_id, 0, bytes(-(-size * SECTOR_BYTES // block)))
        elif verb == "discard":
            first, end = -(-numbers[0] // block), (numbers[0] + numbers[1]) // block
            model.discard(thin_id, first, max(0, end - first))
        elif verb == "write":
            first, end = numbers[0] // block, -(-(numbers[0] + numbers[1]) // block)
            model.write(thin_id, first, bytes(end - first))

    def _deactivate(self, thin_id: int) -> None:
        self._sizes.pop(thin_id, None)
        self._suspended.discard(thin_id)
        self._model.active.discard(thin_id)
