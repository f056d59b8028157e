"""The messages of containerd's services, declared here by name, number and type.

The snapshots and the diff service are served; the content, the leases and the introspection service are containerd's
own, and are called. All are declared in one package of ours: of a message, only the numbers and types of its fields are
sent.

Source: containerd, `api/services/{snapshots,diff,content,leases,introspection}/v1/*.proto`, `api/types/mount.proto` and
`descriptor.proto`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, field_mask_pb2, message_factory, timestamp_pb2

SNAPSHOTS: Final = "containerd.services.snapshots.v1.Snapshots"
DIFF: Final = "containerd.services.diff.v1.Diff"
CONTENT: Final = "containerd.services.content.v1.Content"
LEASES: Final = "containerd.services.leases.v1.Leases"
INTROSPECTION: Final = "containerd.services.introspection.v1.Introspection"
_PACKAGE: Final = "cowfs.containerd"
_FIELD: Final = descriptor_pb2.FieldDescriptorProto

UNKNOWN, VIEW, ACTIVE, COMMITTED = range(4)
STAT, WRITE, COMMIT = range(3)  # of WriteContentRequest

_STRING: Final = (_FIELD.TYPE_STRING, "")
_BYTES: Final = (_FIELD.TYPE_BYTES, "")
_INT64: Final = (_FIELD.TYPE_INT64, "")
_ACTION: Final = (_FIELD.TYPE_INT32, "")
_KIND: Final = (_FIELD.TYPE_ENUM, f".{_PACKAGE}.Kind")
_TIMESTAMP: Final = (_FIELD.TYPE_MESSAGE, ".google.protobuf.Timestamp")
_FIELD_MASK: Final = (_FIELD.TYPE_MESSAGE, ".google.protobuf.FieldMask")
_LABELS: Final = (_FIELD.TYPE_MESSAGE, "labels")


def _message(name: str) -> tuple[int, str]:
    return _FIELD.TYPE_MESSAGE, f".{_PACKAGE}.{name}"


def _many(kind: tuple[int, str]) -> tuple[int, str, bool]:
    return (*kind, True)


# Message -> field -> (number, type), with True for a repeated one.
_MESSAGES: Final[Mapping[str, Mapping[str, tuple[int, tuple[Any, ...]]]]] = {
    "Mount": {"type": (1, _STRING), "source": (2, _STRING), "target": (3, _STRING), "options": (4, _many(_STRING))},
    "Info": {
        "name": (1, _STRING),
        "parent": (2, _STRING),
        "kind": (3, _KIND),
        "created_at": (4, _TIMESTAMP),
        "updated_at": (5, _TIMESTAMP),
        "labels": (6, _LABELS),
    },
    "PrepareSnapshotRequest": {
        "snapshotter": (1, _STRING),
        "key": (2, _STRING),
        "parent": (3, _STRING),
        "labels": (4, _LABELS),
    },
    "PrepareSnapshotResponse": {"mounts": (1, _many(_message("Mount")))},
    "ViewSnapshotRequest": {
        "snapshotter": (1, _STRING),
        "key": (2, _STRING),
        "parent": (3, _STRING),
        "labels": (4, _LABELS),
    },
    "ViewSnapshotResponse": {"mounts": (1, _many(_message("Mount")))},
    "MountsRequest": {"snapshotter": (1, _STRING), "key": (2, _STRING)},
    "MountsResponse": {"mounts": (1, _many(_message("Mount")))},
    "RemoveSnapshotRequest": {"snapshotter": (1, _STRING), "key": (2, _STRING)},
    "CommitSnapshotRequest": {
        "snapshotter": (1, _STRING),
        "name": (2, _STRING),
        "key": (3, _STRING),
        "labels": (4, _LABELS),
        "parent": (5, _STRING),
    },
    "StatSnapshotRequest": {"snapshotter": (1, _STRING), "key": (2, _STRING)},
    "StatSnapshotResponse": {"info": (1, _message("Info"))},
    "UpdateSnapshotRequest": {
        "snapshotter": (1, _STRING),
        "info": (2, _message("Info")),
        "update_mask": (3, _FIELD_MASK),
    },
    "UpdateSnapshotResponse": {"info": (1, _message("Info"))},
    "ListSnapshotsRequest": {"snapshotter": (1, _STRING), "filters": (2, _many(_STRING))},
    "ListSnapshotsResponse": {"info": (1, _many(_message("Info")))},
    "UsageRequest": {"snapshotter": (1, _STRING), "key": (2, _STRING)},
    "UsageResponse": {"size": (1, _INT64), "inodes": (2, _INT64)},
    "CleanupRequest": {"snapshotter": (1, _STRING)},
    "Descriptor": {
        "media_type": (1, _STRING),
        "digest": (2, _STRING),
        "size": (3, _INT64),
        "annotations": (5, _LABELS),
    },
    "ApplyRequest": {"diff": (1, _message("Descriptor")), "mounts": (2, _many(_message("Mount")))},
    "ApplyResponse": {"applied": (1, _message("Descriptor"))},
    "DiffRequest": {
        "left": (1, _many(_message("Mount"))),
        "right": (2, _many(_message("Mount"))),
        "media_type": (3, _STRING),
        "ref": (4, _STRING),
        "labels": (5, _LABELS),
        "source_date_epoch": (6, _TIMESTAMP),
    },
    "DiffResponse": {"diff": (3, _message("Descriptor"))},
    "ReadContentRequest": {"digest": (1, _STRING), "offset": (2, _INT64), "size": (3, _INT64)},
    "ReadContentResponse": {"offset": (1, _INT64), "data": (2, _BYTES)},
    "WriteContentRequest": {
        "action": (1, _ACTION),
        "ref": (2, _STRING),
        "total": (3, _INT64),
        "expected": (4, _STRING),
        "offset": (5, _INT64),
        "data": (6, _BYTES),
        "labels": (7, _LABELS),
    },
    "WriteContentResponse": {"action": (1, _ACTION), "offset": (4, _INT64), "digest": (6, _STRING)},
    "ContentInfo": {"digest": (1, _STRING), "size": (2, _INT64), "labels": (5, _LABELS)},
    "ContentInfoRequest": {"digest": (1, _STRING)},
    "ContentInfoResponse": {"info": (1, _message("ContentInfo"))},
    "UpdateContentRequest": {"info": (1, _message("ContentInfo")), "update_mask": (2, _FIELD_MASK)},
    "UpdateContentResponse": {"info": (1, _message("ContentInfo"))},
    "AbortRequest": {"ref": (1, _STRING)},
    "CreateLeaseRequest": {"id": (1, _STRING), "labels": (3, _LABELS)},
    "PluginsRequest": {"filters": (1, _many(_STRING))},
    "Plugin": {"type": (1, _STRING), "id": (2, _STRING), "exports": (5, _LABELS)},
    "PluginsResponse": {"plugins": (1, _many(_message("Plugin")))},
}


def _declare() -> dict[str, Any]:
    """The class of each message, by name."""
    file = descriptor_pb2.FileDescriptorProto(name="cowfs/containerd.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.extend([timestamp_pb2.DESCRIPTOR.name, field_mask_pb2.DESCRIPTOR.name])
    kind = file.enum_type.add(name="Kind")
    for number, name in enumerate(("UNKNOWN", "VIEW", "ACTIVE", "COMMITTED")):
        kind.value.add(name=name, number=number)
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for name, (number, (type_, type_name, *repeated)) in fields.items():
            is_map = type_name == "labels"
            if is_map:
                _add_map(message)
                type_name = f".{_PACKAGE}.{message_name}.LabelsEntry"  # noqa: PLW2901
            message.field.add(
                name=name,
                number=number,
                type=type_,
                type_name=type_name or None,
                label=_FIELD.LABEL_REPEATED if repeated or is_map else _FIELD.LABEL_OPTIONAL,
            )
    pool = descriptor_pool.DescriptorPool()
    for known in (timestamp_pb2, field_mask_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"{_PACKAGE}.{name}") for name in _MESSAGES}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


def _add_map(message: Any) -> None:
    """Labels: a map of strings, which is a repeated message of its own."""
    entry = message.nested_type.add(name="LabelsEntry")
    entry.options.map_entry = True
    for number, name in enumerate(("key", "value"), 1):
        entry.field.add(name=name, number=number, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)


_CLASSES: Final = _declare()
EMPTY: Final = empty_pb2.Empty


def message_class(name: str) -> Any:
    """The class of a message, such as `Info`."""
    return _CLASSES[name]
