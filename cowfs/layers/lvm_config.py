"""The pool that `direct_lvm` makes, and of what, as the storage options say."""

from __future__ import annotations

from typing import Final

import msgspec

from cowfs.errors import UsageError

POOL_NAME: Final = "docker-thinpool"


class LvmConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The user's settings; 0 and an empty text mean that a setting was not given. Keys of the file are moby's."""

    device: str = msgspec.field(name="Device", default="")
    thinp_percent: int = msgspec.field(name="ThinpPercent", default=0)
    thinp_metapercent: int = msgspec.field(name="ThinpMetaPercent", default=0)
    autoextend_percent: int = msgspec.field(name="AutoExtendPercent", default=0)
    autoextend_threshold: int = msgspec.field(name="AutoExtendThreshold", default=0)

    @property
    def is_empty(self) -> bool:
        return self == LvmConfig()

    def check(self) -> None:
        """Raises UsageError for parts that do not go together."""
        if self.is_empty:
            return
        if not self.device:
            raise UsageError("must provide device path in `dm.directlvm_device` in order to configure direct-lvm")
        if bool(self.thinp_percent) != bool(self.thinp_metapercent):
            raise UsageError("must set both `dm.thinp_percent` and `dm.thinp_metapercent` if either is specified")
        if self.thinp_percent + self.thinp_metapercent > 100:
            raise UsageError("combined `dm.thinp_percent` and `dm.thinp_metapercent` must not be greater than 100")
