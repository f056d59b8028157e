"""What a rule of faults says, as a structure: in Python, in a plan of TOML, and over the control socket.

    [[rules]]
    name = "wal"
    on = "files"                      # requests of the mount; or device, data, metadata, commit
    device = "web*"
    path = "*.wal"
    operations = ["write"]
    after = 3
    times = 1
    effect = { kind = "error", errno = "EIO" }

Where. `files` are the requests of a mount. The rest is the disk under it: `device` is the thin device, `data` and
`metadata` are the pool's two devices, and `commit` is the write of the metadata's superblock, which makes a transaction
durable. A pattern that begins with a slash is compared with a whole path, from the root of the device on, another one
with the last parts of a path; `*` ends at a slash, and `**` does not.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

import msgspec

from cowfs.errors import UsageError

Place: TypeAlias = Literal["files", "device", "data", "metadata", "commit"]
PoolModeName: TypeAlias = Literal["read_only", "needs_check", "out_of_data_space", "out_of_metadata_space", "failed"]

FILE_OPERATIONS: Final = (
    *("open", "read", "write", "truncate", "fsync", "readdir"),
    *("create", "mkdir", "symlink", "link", "unlink", "rmdir", "rename"),
    *("setattr", "setxattr", "removexattr"),
)
DISK_OPERATIONS: Final = ("read", "write", "discard", "flush")
OPERATIONS: Final[Mapping[Place, tuple[str, ...]]] = {
    "files": FILE_OPERATIONS,
    "device": DISK_OPERATIONS,
    "data": DISK_OPERATIONS,
    "metadata": DISK_OPERATIONS,
    "commit": ("write",),
}
_WITH_A_RANGE: Final = frozenset({"read", "write", "discard"})
_MAX_SECONDS: Final = 3600.0
_MOST_RULES: Final = 1000
_MOST_CHARACTERS: Final = 1 << 20
_MOST_SECTORS: Final = 1 << 16


class _Effect(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Base of the effects.

    `places`, `operations`: where an effect can be, and on what.
    """

    places: ClassVar[tuple[Place, ...]] = get_args(Place)
    operations: ClassVar[frozenset[str]] = frozenset({*FILE_OPERATIONS, *DISK_OPERATIONS})

    @property
    def kind(self) -> str:
        return str(self.__struct_config__.tag)

    def check(self) -> None:
        """Raises _WrongField."""


class Error(_Effect, frozen=True, tag="error"):
    """The operation fails, and nothing of it is done. `errno` is a name, as in EIO."""

    errno: str = "EIO"

    @property
    def number(self) -> int:
        return int(getattr(errno, self.errno))

    def check(self) -> None:
        _check_errno(self.errno)


class Delay(_Effect, frozen=True, tag="delay"):
    """The operation waits before it is done. On files others go on meanwhile; a disk answers one request at a time."""

    seconds: float

    def check(self) -> None:
        if not 0 < self.seconds <= _MAX_SECONDS:
            raise _WrongField("effect.seconds", f"{self.seconds} is not more than 0 and at most {_MAX_SECONDS:.0f}")


class Short(_Effect, frozen=True, tag="short"):
    """Of a write to a file only the first bytes are written, and write(2) says so."""

    keep_bytes: int

    places = ("files",)
    operations = frozenset({"write"})

    def check(self) -> None:
        if self.keep_bytes < 1:
            raise _WrongField("effect.keep_bytes", f"{self.keep_bytes} is less than 1; for none, use the kind 'error'")


class Tear(_Effect, frozen=True, tag="tear"):
    """Of a write only a part arrives, and it succeeds; with `errno` it fails with that after the part has arrived.

    The part is the first `keep_bytes`, or the `keep_sectors` by their numbers from the beginning of the write, of 512
    bytes each, or by default some sectors that the rule's `seed` chooses. The rest keeps its former content.
    """

    keep_bytes: int | None = None
    keep_sectors: tuple[int, ...] | None = None
    errno: str = ""

    operations = frozenset({"write"})

    def check(self) -> None:
        if self.keep_bytes is not None and self.keep_sectors is not None:
            raise _WrongField("effect.keep_sectors", "beside keep_bytes; give one of the two")
        if self.keep_bytes is not None and self.keep_bytes < 0:
            raise _WrongField("effect.keep_bytes", f"{self.keep_bytes} is negative")
        if self.keep_sectors is not None and not all(0 <= sector < _MOST_SECTORS for sector in self.keep_sectors):
            raise _WrongField(
                "effect.keep_sectors", f"each is from 0 to {_MOST_SECTORS - 1}, counted from the write's beginning"
            )
        if self.errno:
            _check_errno(self.errno)


class Flip(_Effect, frozen=True, tag="flip"):
    """One bit is wrong in what is read, or in what is written.

    It is bit `bit`, 0 the lowest, of the byte at `offset_bytes` of the device or file; an operation that does not
    touch that byte does not meet the rule. Without `offset_bytes` the rule's `seed` chooses a bit each time.
    """

    offset_bytes: int | None = None
    bit: int = 0

    operations = frozenset({"read", "write"})

    def check(self) -> None:
        if self.offset_bytes is not None and self.offset_bytes < 0:
            raise _WrongField("effect.offset_bytes", f"{self.offset_bytes} is negative")
        if not 0 <= self.bit < 8:
            raise _WrongField("effect.bit", f"{self.bit} is not from 0 to 7")


class Lose(_Effect, frozen=True, tag="lose"):
    """The operation succeeds, and nothing of it is done: a lost write, a lost flush."""

    operations = frozenset({"write", "fsync", "discard", "flush"})


class NoSpace(_Effect, frozen=True, tag="no_space"):
    """The pool has no space: ENOSPC for want of `data`, and for want of `metadata` the mode that the pool then has."""

    of: Literal["data", "metadata"] = "data"

    places = ("files", "device")


class PoolMode(_Effect, frozen=True, tag="pool_mode"):
    """The pool goes into another mode, and the operation meets it so. The mode ends as the pool's own would."""

    mode: PoolModeName

    places = ("files", "device")


class Crash(_Effect, frozen=True, tag="crash"):
    """The process that serves the mount ends at once, before the operation, as by kill -9."""


Effect: TypeAlias = Error | Delay | Short | Tear | Flip | Lose | NoSpace | PoolMode | Crash


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which operations meet which effect. An operation counts for a rule when it is of its place, kind and range.

    Args:
        effect: what happens.
        operations: their names, of `OPERATIONS[on]`; none in `commit`, where there is one.
        name: for lists, messages and `clear`; given by a number when empty.
        on: the place.
        device: pattern of the names of devices, in `files` and `device`.
        path: pattern of paths, in `files`; either name of a rename counts.
        range_bytes: (begin, end) of the bytes of the file or device; an operation counts when it touches one of them.
        range_blocks: the same in blocks: the pool's data blocks, and in `metadata` blocks of 4 KiB.
        after: how many operations that count pass before the first that meets the effect.
        times: how many then meet it; None for all, 0 only to count.
        nth: the one that meets it, from 1, in the place of `after` and `times`.
        probability: that one of them does.
        seed: of the rule's own random numbers.
    """

    effect: Effect
    operations: tuple[str, ...] = ()
    name: str = ""
    on: Place = "files"
    device: str = "*"
    path: str = ""
    range_bytes: tuple[int, int] | None = None
    range_blocks: tuple[int, int] | None = None
    after: int = 0
    times: int | None = None
    nth: int | None = None
    probability: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Raises _WrongField."""
        self._check_operations()
        self._check_place()
        self._check_range()
        self._check_when()
        self.effect.check()
        if self.on not in self.effect.places:
            raise _WrongField(
                "effect.kind", f"'{self.effect.kind}' is for {_or(self.effect.places)}, not for '{self.on}'"
            )
        if without := [one for one in self.operations if one not in self.effect.operations]:
            possible = [one for one in OPERATIONS[self.on] if one in self.effect.operations]
            raise _WrongField("effect.kind", f"'{self.effect.kind}' is for {_or(possible)}, not for '{without[0]}'")

    def _check_operations(self) -> None:
        known = OPERATIONS[self.on]
        if unknown := [one for one in self.operations if one not in known]:
            raise _WrongField(
                "operations", f"'{unknown[0]}' is not an operation of '{self.on}', which has {_or(known)}"
            )
        if not self.operations and self.on != "commit":
            raise _WrongField("operations", f"there is none; '{self.on}' has {_or(known)}")

    def _check_place(self) -> None:
        if self.path and self.on != "files":
            raise _WrongField("path", f"is for 'files', not for '{self.on}'")
        if self.device != "*" and self.on not in ("files", "device"):
            raise _WrongField(
                "device", f"is for 'files' and 'device'; '{self.on}' is of the pool, which all devices share"
            )
        if not self.device:
            raise _WrongField("device", "is empty; '*' is for all")
        for field, pattern in (("device", self.device), ("path", self.path)):
            try:
                _compiled(pattern)
            except re.error as error:
                raise _WrongField(field, f"'{pattern}' is not a pattern: {error}") from None

    def _check_range(self) -> None:
        if self.range_bytes is not None and self.range_blocks is not None:
            raise _WrongField("range_blocks", "beside range_bytes; give one of the two")
        for field, given in (("range_bytes", self.range_bytes), ("range_blocks", self.range_blocks)):
            if given is None:
                continue
            if not 0 <= given[0] < given[1]:
                raise _WrongField(
                    field, f"[{given[0]}, {given[1]}] is not a range; give [begin, end], the end not included"
                )
            if self.on == "commit":
                raise _WrongField(field, "is not for 'commit', which is one block")
            if without := [one for one in self.operations if one not in _WITH_A_RANGE]:
                raise _WrongField(field, f"is for {_or(sorted(_WITH_A_RANGE))}, not for '{without[0]}'")
        if self.range_blocks is not None and self.on == "files":
            raise _WrongField("range_blocks", "is for disks; for 'files' give range_bytes")

    def _check_when(self) -> None:
        if self.nth is not None and (self.after or self.times is not None):
            raise _WrongField("nth", "beside after or times; give nth alone")
        if self.nth is not None and self.nth < 1:
            raise _WrongField("nth", f"{self.nth} is less than 1, which is the first")
        if self.after < 0:
            raise _WrongField("after", f"{self.after} is negative")
        if self.times is not None and self.times < 0:
            raise _WrongField("times", f"{self.times} is negative; 0 only counts")
        if not 0 < self.probability <= 1:
            raise _WrongField("probability", f"{self.probability} is not more than 0 and at most 1")


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rules, in the order in which they are looked at."""

    rules: tuple[Rule, ...] = ()


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """A plan from a file. Raises UsageError as `parse_plan`, and for a file that cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise UsageError(f"the plan of faults {os.fspath(path)} cannot be read: {reason}", errno=error.errno) from error
    except UnicodeDecodeError:
        raise UsageError(f"the plan of faults {os.fspath(path)} is not a text in UTF-8") from None
    return parse_plan(text, os.fspath(path))


def parse_plan(text: str, source: str = "the plan") -> Plan:
    """A plan of TOML.

    Args:
        source: its name in errors.

    Raises:
        UsageError: what is wrong, with the rule and the field.
    """
    if len(text) > _MOST_CHARACTERS:
        raise UsageError(f"{source} has more than {_MOST_CHARACTERS} characters, too many for a plan")
    import tomllib

    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source} is not TOML: {str(error)[0].lower()}{str(error)[1:]}") from None
    rules = raw.pop("rules", [])
    if raw:
        raise UsageError(f"{source}: '{next(iter(raw))}' is not a part of a plan, which is a list of [[rules]]")
    if not isinstance(rules, list) or not rules:
        raise UsageError(f"{source}: there are no rules; a plan is a list of [[rules]]")
    return Plan(checked(tuple(_decode(rule, number, source) for number, rule in enumerate(rules, 1)), source))


def checked(rules: Iterable[Rule], source: str = "the faults") -> tuple[Rule, ...]:
    """Rules that make sense, each with its own name. Raises UsageError as `parse_plan` does."""
    rules = tuple(rules)
    if len(rules) > _MOST_RULES:
        raise UsageError(f"{source}: there are {len(rules)} rules, and at most {_MOST_RULES} are possible")
    names = [rule.name for rule in rules if rule.name]
    for number, rule in enumerate(rules, 1):
        try:
            rule.check()
            if rule.name and names.count(rule.name) > 1:
                raise _WrongField("name", f"'{rule.name}' is the name of two rules")
        except _WrongField as wrong:
            raise wrong.error(_title(number, rule.name), source) from None
    return rules


def convert_rule(raw: Mapping[str, Any], source: str) -> Rule:
    """One rule from plain values, decoded as strictly as one of a plan."""
    rule = _decode(raw, 0, source)
    try:
        rule.check()
    except _WrongField as wrong:
        raise wrong.error(_title(0, ""), source) from None
    return rule


def matches(pattern: str, path: str) -> bool:
    """Whether a path, from `/` on, is one that a pattern of a rule means."""
    return _compiled(pattern if pattern.startswith("/") else f"/**/{pattern}").fullmatch(path) is not None


def matches_name(pattern: str, name: str) -> bool:
    """Whether the name of a device is one that a pattern of a rule means."""
    return pattern == "*" or _compiled(pattern).fullmatch(name) is not None


class _WrongField(Exception):
    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def error(self, title: str, source: str) -> UsageError:
        return UsageError(f"{source}, {title}, field '{self.field}': {self.problem}")


def _decode(raw: Any, number: int, source: str) -> Rule:
    name = raw.get("name", "") if isinstance(raw, dict) else ""
    title = _title(number, name if isinstance(name, str) else "")
    try:
        return msgspec.convert(raw, Rule)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$")
        field = where.rstrip("`").lstrip(".")
        if not field and (found := re.search(r"field `(\w+)`", problem)):
            field = found[1]
        elif field and (found := re.search(r"field `(\w+)`", problem)):
            field = f"{field}.{found[1]}"
        raise _WrongField(field or "effect", problem.replace("`", "'")).error(title, source) from None


def _title(number: int, name: str) -> str:
    if not number:
        return "the rule"
    return f"rule {number} ('{name}')" if name else f"rule {number}"


def _check_errno(name: str) -> None:
    if not isinstance(getattr(errno, name, None), int) or not name.isupper():
        raise _WrongField("effect.errno", f"'{name}' is not an errno; give its name, as in EIO or ENOSPC")


def _or(words: Sequence[str]) -> str:
    quoted = [f"'{word}'" for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


@lru_cache(maxsize=_MOST_RULES)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        rest = pattern[position:]
        if rest.startswith("**/"):
            parts.append("(?:.*/)?")
            position += 3
        elif rest.startswith("**"):
            parts.append(".*")
            position += 2
        elif rest[0] == "*":
            parts.append("[^/]*")
            position += 1
        elif rest[0] == "?":
            parts.append("[^/]")
            position += 1
        elif found := re.match(r"\[(!?)(\]?[^\]/]*)\]", rest):
            parts.append(f"[{'^/' if found[1] else ''}{re.escape(found[2]).replace(chr(92) + '-', '-')}]")
            position += found.end()
        else:
            parts.append(re.escape(rest[0]))
            position += 1
    return re.compile("".join(parts), re.DOTALL)
