"""What a change asks first: whether the home can be changed, and whether enough of its pool is free."""

from __future__ import annotations

import errno

from cowfs.devices.on_disk.options import MinimumFree
from cowfs.devices.pools import free_space, health
from cowfs.errors import HomeError
from cowfs.pool import Pool


class ChangeGuard:
    """The conditions of one home.

    Attributes:
        health: the pool's, when the home was opened.
        read_only: the home was opened for reading, or its pool could not be changed then.
    """

    def __init__(self, home: str, pool: Pool, minimum_free: MinimumFree, *, read_only: bool) -> None:
        self._home = home
        self._pool = pool
        self._minimum_free = minimum_free
        self.health = health.examine(pool)
        self.read_only = read_only or not self.health.can_change

    def check_writable(self, *, to_make_room: bool = False) -> None:
        """Raises HomeError or PoolModeError (EROFS) when nothing can be changed, OutOfMetadataSpace when little can be.

        Args:
            to_make_room: the change frees metadata, so it is allowed when the metadata is full.
        """
        if self.read_only and self.health.can_change:
            raise HomeError(
                f"the home {self._home} is open read-only, because that was asked for or it cannot be written here; "
                "to change it, open it for writing",
                errno=errno.EROFS,
            )
        health.require_writable(self._pool, to_make_room=to_make_room)

    def require_free_space(self) -> None:
        """Raises OutOfDataSpace or OutOfMetadataSpace when less than the minimum is free."""
        free_space.require_minimum(self._pool, self._minimum_free)
