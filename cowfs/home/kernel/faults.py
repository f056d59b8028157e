"""Rules about the disks of a kernel pool, carried out by the kernel: which rules it can carry out."""

from __future__ import annotations

from typing import Final

from cowfs.errors import UsageError
from cowfs.faults.plan import Delay, Error, Lose, Rule
from cowfs.pool import DiskFault
from cowfs.units import METADATA_BLOCK_BYTES

_ERRNO: Final = "EIO"


def as_disk_fault(rule: Rule, block_bytes: int) -> DiskFault:
    """A rule of `data` or `metadata` for a pool of the kernel.

    Args:
        block_bytes: of the pool's data blocks.

    Raises:
        UsageError: the kernel does not do this; it does the same to each request, and does not count.
    """
    assert rule.on in ("data", "metadata")
    effect = rule.effect
    if not isinstance(effect, Error | Delay | Lose):
        raise _refusal(rule, f"has no '{effect.kind}' below a pool; it has 'error', 'delay' and 'lose'")
    if isinstance(effect, Error) and effect.errno != _ERRNO:
        raise _refusal(rule, f"fails requests with {_ERRNO}, not with {effect.errno}")
    if rule.after or rule.times is not None or rule.nth is not None or rule.probability < 1:
        raise _refusal(rule, "does this to each request; leave out after, times, nth and probability")
    begin, end = rule.range_bytes or (0, None)
    if rule.range_blocks is not None:
        unit = block_bytes if rule.on == "data" else METADATA_BLOCK_BYTES
        begin, end = rule.range_blocks[0] * unit, rule.range_blocks[1] * unit
    seconds = effect.seconds if isinstance(effect, Delay) else 0.0
    return DiskFault(rule.on, effect.kind, frozenset(rule.operations), begin, end, seconds)  # type: ignore[arg-type]


def _refusal(rule: Rule, what: str) -> UsageError:
    return UsageError(
        f"fault '{rule.name or rule.effect.kind}' on '{rule.on}': the pool runs in the kernel, which {what}; "
        "the backend 'emulated' has all faults"
    )
