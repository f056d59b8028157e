"""Which requests other processes can send: all that the modules of requests declare, but for local ones."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from cowfs.errors import UsageError
from cowfs.home import requests
from cowfs.home.requests.decoding import REQUESTS, decode_request
from cowfs.home.requests.devices import Rename, ShowNode
from cowfs.home.requests.layers import PutAllLayers
from cowfs.home.requests.request import Listing, Request, StreamIn, StreamOut, Upload


def test_each_module_of_requests_is_one_that_is_decoded() -> None:
    names = [module.name for module in pkgutil.iter_modules(requests.__path__)]
    modules = [importlib.import_module(f"{requests.__name__}.{name}") for name in names]
    declared = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    kinds = {kind for kind in declared if issubclass(kind, Request | Listing | StreamIn | StreamOut)}
    operations = kinds - {Request, Listing, StreamIn, StreamOut, Upload}
    assert {kind for kind in operations if not kind.is_local} == set(REQUESTS)
    assert len(REQUESTS) > 50


def test_what_is_local_is_not_taken_from_another_process() -> None:
    assert decode_request(b'{"op":"rename","name":"a","new_name":"b"}') == Rename("a", "b")
    for local in (PutAllLayers, ShowNode):
        assert local.is_local
        tag = local.__struct_config__.tag
        with pytest.raises(UsageError, match=f"not a request to a home: Invalid value '{tag}'"):
            decode_request(f'{{"op":"{tag}","name":"web"}}'.encode())
