"""A plugin of mypy: `dataclasses.replace` on a structure of msgspec is an error, as it is one at run time.

mypy takes such a structure for a dataclass, since msgspec declares it as one (dataclass_transform).
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.plugin import FunctionContext, Plugin
from mypy.types import Instance, Type, get_proper_type


class StructsPlugin(Plugin):
    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Type] | None:
        return _refuse_structs if fullname == "dataclasses.replace" else None


def _refuse_structs(context: FunctionContext) -> Type:
    kind = get_proper_type(context.arg_types[0][0])
    if isinstance(kind, Instance) and kind.type.has_base("msgspec.Struct"):
        context.api.fail(f"{kind.type.name} is a structure of msgspec; use msgspec.structs.replace", context.context)
    return context.default_return_type


def plugin(_version: str) -> type[Plugin]:
    return StructsPlugin
