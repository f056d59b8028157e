"""Requests as they come over the control socket."""

from __future__ import annotations

import typing
from typing import Final

import msgspec

from cowfs.errors import UsageError
from cowfs.home.requests.clock import CLOCK_REQUESTS
from cowfs.home.requests.clone import CLONE_REQUESTS
from cowfs.home.requests.comparing import COMPARING_REQUESTS
from cowfs.home.requests.counters import COUNTER_REQUESTS
from cowfs.home.requests.devices import REQUESTS
from cowfs.home.requests.disks import DISK_REQUESTS
from cowfs.home.requests.faults import FAULT_REQUESTS
from cowfs.home.requests.files import FILE_REQUESTS
from cowfs.home.requests.images import IMAGE_REQUESTS
from cowfs.home.requests.layers import LAYER_REQUESTS
from cowfs.home.requests.new_layers import NEW_LAYER_REQUESTS
from cowfs.home.requests.power import POWER_REQUESTS
from cowfs.home.requests.recordings import RECORDING_REQUESTS
from cowfs.home.requests.request import AnyRequest
from cowfs.home.requests.space import SPACE_REQUESTS
from cowfs.home.requests.traces import TRACE_REQUESTS

_REQUESTS: Final = (
    *(*REQUESTS, *CLOCK_REQUESTS, *CLONE_REQUESTS, *COUNTER_REQUESTS, *DISK_REQUESTS),
    *(*FAULT_REQUESTS, *IMAGE_REQUESTS),
    *(*LAYER_REQUESTS, *NEW_LAYER_REQUESTS, *SPACE_REQUESTS, *FILE_REQUESTS, *COMPARING_REQUESTS, *POWER_REQUESTS),
    *(*RECORDING_REQUESTS, *TRACE_REQUESTS),
)
_DECODER: Final = msgspec.json.Decoder(typing.Union[(*_REQUESTS,)])


def decode_request(line: bytes) -> AnyRequest:
    """Raises UsageError for anything that is not a request."""
    try:
        return _DECODER.decode(line)  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"not a request to a home: {error}") from None
