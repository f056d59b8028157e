"""The pool interface and the kernel's four texts: table, status, message, name."""

from cowfs.pool.counters import Counters, CountingPool, PoolCounters, ThinCounters, WriteAmplification
from cowfs.pool.interface import (
    Backend,
    BackendWithClock,
    BreakablePool,
    Capability,
    DiskFault,
    DiskRole,
    GroupingPool,
    LayeredPool,
    NodeBackend,
    NodePool,
    NodeThin,
    Pool,
    PoolWithTimeout,
    ProbeResult,
    ThinDevice,
)
from cowfs.pool.message import Message
from cowfs.pool.refusals import check_data_device, check_reload, check_thin_length, refusal_by_mode
from cowfs.pool.registry import backend_names, load_backend
from cowfs.pool.status import (
    DiscardMode,
    NoSpacePolicy,
    PoolMode,
    PoolStatus,
    ThinStatus,
    UnreadableStatus,
)
from cowfs.pool.table import PoolTable, ThinTable
from cowfs.units import Extent

__all__ = [
    "Backend",
    "BackendWithClock",
    "BreakablePool",
    "Capability",
    "Counters",
    "CountingPool",
    "DiscardMode",
    "DiskFault",
    "DiskRole",
    "Extent",
    "GroupingPool",
    "LayeredPool",
    "Message",
    "NoSpacePolicy",
    "NodeBackend",
    "NodePool",
    "NodeThin",
    "Pool",
    "PoolCounters",
    "PoolMode",
    "PoolStatus",
    "PoolTable",
    "PoolWithTimeout",
    "ProbeResult",
    "ThinCounters",
    "ThinDevice",
    "ThinStatus",
    "ThinTable",
    "UnreadableStatus",
    "WriteAmplification",
    "backend_names",
    "check_data_device",
    "check_reload",
    "check_thin_length",
    "load_backend",
    "refusal_by_mode",
]
