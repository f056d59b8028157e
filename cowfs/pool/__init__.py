"""The pool interface and the kernel's four texts: table, status, message, name."""

from cowfs.pool.interface import (
    Backend,
    Capability,
    GroupingPool,
    NodeBackend,
    NodePool,
    NodeThin,
    Pool,
    ProbeResult,
    ThinDevice,
)
from cowfs.pool.message import Message
from cowfs.pool.registry import backend_names, load_backend
from cowfs.pool.status import (
    DiscardMode,
    NoSpacePolicy,
    PoolMode,
    PoolStatus,
    ThinStatus,
    UnreadableStatus,
    refusal_by_mode,
)
from cowfs.pool.table import PoolTable, ThinTable
from cowfs.units import Extent

__all__ = [
    "Backend",
    "Capability",
    "DiscardMode",
    "Extent",
    "GroupingPool",
    "Message",
    "NoSpacePolicy",
    "NodeBackend",
    "NodePool",
    "NodeThin",
    "Pool",
    "PoolMode",
    "PoolStatus",
    "PoolTable",
    "ProbeResult",
    "ThinDevice",
    "ThinStatus",
    "ThinTable",
    "UnreadableStatus",
    "backend_names",
    "load_backend",
    "refusal_by_mode",
]
