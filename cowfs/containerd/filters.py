"""containerd's language of filters: `kind==active,labels."a/b"~=x`, several of which are alternatives.

    filter    = selector {"," selector}
    selector  = path [operator value]        without an operator: it is there, and not empty
    path      = name {"." name}              a name, or one in quotes
    operator  = "==" | "!=" | "~="           the last one takes a regular expression

Regular expressions are those of RE2, as of containerd: the time of a match is in proportion to the value, whatever a
client sends.

Source: containerd, `pkg/filters/parser.go`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import re2

from cowfs.errors import UsageError

Lookup = Callable[[Sequence[str]], str | None]
_OPERATORS: Final = ("==", "!=", "~=")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_VALUE: Final = re.compile(r"[^,\s\"|/]+")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|/((?:[^/\\]|\\.)*)/|\|((?:[^|\\]|\\.)*)\|')
_MAX_CHARACTERS: Final = 64 << 10
_QUIET: Final = re2.Options()
_QUIET.log_errors = False


class _Selector(NamedTuple):
    path: tuple[str, ...]
    operator: str
    value: str
    expression: Any = None  # the value, compiled

    def matches(self, lookup: Lookup) -> bool:
        found = lookup(self.path)
        if not self.operator:
            return bool(found)
        if self.expression is not None:
            return found is not None and self.expression.search(found) is not None
        return ((found or "") == self.value) == (self.operator == "==")


def parse_filters(texts: Iterable[str]) -> Callable[[Lookup], bool]:
    """A function that returns whether a snapshot matches one of the filters; without filters every snapshot matches.

    Args (of the result): calls its argument with a path of names for a value, None where there is none.

    Raises:
        UsageError: a filter that is not one.
    """
    filters = [_parse(text) for text in texts]

    def matches(lookup: Lookup) -> bool:
        return not filters or any(all(selector.matches(lookup) for selector in one) for one in filters)

    return matches


def lookup_in(values: Mapping[str, str], labels: Mapping[str, str]) -> Lookup:
    """Finds values by their one name, and labels by `labels.NAME`, whose name may be in parts."""

    def lookup(path: Sequence[str]) -> str | None:
        if path[0] == "labels":
            return labels.get(".".join(path[1:]))
        return values.get(path[0]) if len(path) == 1 else None

    return lookup


def _parse(text: str) -> list[_Selector]:
    if len(text) > _MAX_CHARACTERS:
        raise UsageError(f"a filter of {len(text)} characters; at most {_MAX_CHARACTERS} are read")
    if not text.strip():
        return []
    selectors = []
    at = 0
    while True:
        selector, at = _selector(text, at)
        selectors.append(selector)
        if at == len(text):
            return selectors
        if text[at] != ",":
            raise _bad(text, at, "a comma")
        at += 1


def _selector(text: str, at: int) -> tuple[_Selector, int]:
    path = []
    while True:
        name, at = _name(text, at)
        path.append(name)
        if text[at : at + 1] != ".":
            break
        at += 1
    operator = text[at : at + 2]
    if operator not in _OPERATORS:
        return _Selector(tuple(path), "", ""), at
    value, at = _value(text, at + 2)
    if operator == "~=":
        try:
            return _Selector(tuple(path), operator, value, re2.compile(value, _QUIET)), at
        except re2.error as error:
            reason = error.args[0].decode(errors="replace")
            raise UsageError(f"the filter {text[:200]!r} has a bad regular expression: {reason[:200]}") from None
    return _Selector(tuple(path), operator, value), at


def _name(text: str, at: int) -> tuple[str, int]:
    if found := _QUOTED.match(text, at):
        return _unquoted(found), found.end()
    if found := _NAME.match(text, at):
        return found.group(), found.end()
    raise _bad(text, at, "the name of a field")


def _value(text: str, at: int) -> tuple[str, int]:
    if found := _QUOTED.match(text, at):
        return _unquoted(found), found.end()
    if found := _VALUE.match(text, at):
        return found.group(), found.end()
    raise _bad(text, at, "a value")


def _unquoted(found: re.Match[str]) -> str:
    quoted, *others = found.groups()
    if quoted is None:
        return next(other for other in others if other is not None)
    return re.sub(r"\\(.)", r"\1", quoted)


def _bad(text: str, at: int, expected: str) -> UsageError:
    return UsageError(f"the filter {text[:200]!r} has no {expected.removeprefix('a ').removeprefix('the ')} at {at}")
