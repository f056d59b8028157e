"""What a plan may say, and what a wrong one is answered with."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cowfs.errors import UsageError
from cowfs.faults.plan import (
    DISK_OPERATIONS,
    Crash,
    Delay,
    Error,
    Flip,
    Lose,
    NoSpace,
    PoolMode,
    Rule,
    Short,
    Tear,
    checked,
    convert_rule,
    matches,
    matches_name,
    parse_plan,
    read_plan,
)

WHOLE = """
[[rules]]
name = "wal"
device = "web*"
path = "*.wal"
operations = ["write", "fsync"]
after = 3
times = 1
effect = { kind = "error", errno = "ENOSPC" }

[[rules]]
on = "data"
operations = ["read"]
range_blocks = [2, 4]
probability = 0.5
seed = 7
effect = { kind = "flip", bit = 3 }

[[rules]]
on = "commit"
effect = { kind = "delay", seconds = 0.5 }
nth = 2
"""


def test_a_plan_says_what_python_says() -> None:
    assert parse_plan(WHOLE).rules == (
        Rule(
            effect=Error("ENOSPC"),
            operations=("write", "fsync"),
            name="wal",
            device="web*",
            path="*.wal",
            after=3,
            times=1,
        ),
        Rule(effect=Flip(bit=3), operations=("read",), on="data", range_blocks=(2, 4), probability=0.5, seed=7),
        Rule(effect=Delay(0.5), on="commit", nth=2),
    )


@pytest.mark.parametrize(
    "rule",
    [
        Rule(effect=Short(3), operations=("write",)),
        Rule(effect=Tear(keep_sectors=(0, 2), errno="EIO"), operations=("write",), on="metadata"),
        Rule(effect=Lose(), operations=("flush",), on="device", device="a"),
        Rule(effect=NoSpace("metadata"), operations=("create",)),
        Rule(effect=PoolMode("needs_check"), operations=("write",), on="device", after=5),
        Rule(effect=Crash(), operations=("rename",), nth=3),
    ],
    ids=lambda rule: rule.effect.kind,
)
def test_a_rule_goes_through_plain_values(rule: Rule) -> None:
    assert convert_rule(msgspec.to_builtins(rule), "a test") == rule
    assert msgspec.json.decode(msgspec.json.encode(rule), type=Rule) == rule


RULE = 'operations = ["write"]\neffect = { kind = "error" }\n'


def rule(*lines: str, base: str = RULE) -> str:
    return "[[rules]]\n" + base + "\n".join(lines)


WRONG = {
    "no TOML": ("rules = [", "the plan is not TOML: "),
    "nothing": ("", "the plan: there are no rules; a plan is a list of [[rules]]"),
    "another table": ("[[faults]]\nx = 1", "the plan: 'faults' is not a part of a plan, which is a list of [[rules]]"),
    "no list": ("rules = 3", "the plan: there are no rules; a plan is a list of [[rules]]"),
    "no table": ("rules = [3]", "the plan, rule 1, field 'effect': Expected 'object', got 'int'"),
    "unknown field": (rule("colour = 3"), "the plan, rule 1, field 'colour': "),
    "second rule": (rule() + rule('name = "b"', "after = -1"), "the plan, rule 2 ('b'), field 'after': -1 is negative"),
    "type": (rule('after = "x"'), "the plan, rule 1, field 'after': Expected 'int', got 'str'"),
    "place": (rule('on = "disk"'), "the plan, rule 1, field 'on': Invalid enum value 'disk'"),
    "no effect": (rule(base='operations = ["write"]\n'), "field 'effect': "),
    "unknown effect": (rule(base='operations = ["write"]\neffect = { kind = "explode" }\n'), "field 'effect"),
    "unknown field of an effect": (
        rule(base='operations = ["write"]\neffect = { kind = "lose", errno = "EIO" }\n'),
        "field 'effect.errno'",
    ),
    "missing field of an effect": (
        rule(base='operations = ["write"]\neffect = { kind = "delay" }\n'),
        "field 'effect.seconds'",
    ),
    "errno": (rule(base='operations = ["write"]\neffect = { kind = "error", errno = "EFOO" }\n'), "'EFOO' is not an"),
    "errno of python": (
        rule(base='operations = ["write"]\neffect = { kind = "error", errno = "errorcode" }\n'),
        "'errorcode' is not an errno",
    ),
    "operation": (
        rule(base='operations = ["flush"]\neffect = { kind = "error" }\n'),
        "'flush' is not an operation of 'files'",
    ),
    "operation of a disk": (
        rule('on = "device"', base='operations = ["fsync"]\neffect = { kind = "error" }\n'),
        "'fsync' is not an operation of 'device', which has 'read', 'write', 'discard' or 'flush'",
    ),
    "no operation": (rule(base='effect = { kind = "error" }\n'), "field 'operations': there is none"),
    "path of a disk": (rule('on = "device"', 'path = "x"'), "field 'path': is for 'files', not for 'device'"),
    "device of the pool": (rule('on = "data"', 'device = "x"'), "field 'device': is for 'files' and 'device'"),
    "pattern": (rule('path = "[z-a]"'), "field 'path': '[z-a]' is not a pattern"),
    "empty range": (rule("range_bytes = [5, 5]"), "field 'range_bytes': [5, 5] is not a range"),
    "two ranges": (
        rule('on = "data"', "range_bytes = [0, 5]", "range_blocks = [0, 5]"),
        "field 'range_blocks': beside",
    ),
    "blocks of a file": (rule("range_blocks = [0, 5]"), "field 'range_blocks': is for disks"),
    "range of a flush": (
        rule('on = "data"', "range_bytes = [0, 5]", base='operations = ["flush"]\neffect = { kind = "error" }\n'),
        "field 'range_bytes': is for 'discard', 'read' or 'write', not for 'flush'",
    ),
    "nth beside after": (rule("nth = 1", "after = 1"), "field 'nth': beside after or times; give nth alone"),
    "nth": (rule("nth = 0"), "field 'nth': 0 is less than 1"),
    "times": (rule("times = -1"), "field 'times': -1 is negative"),
    "probability": (rule("probability = 1.5"), "field 'probability': 1.5 is not more than 0 and at most 1"),
    "two of a name": (rule('name = "a"') + "\n" + rule('name = "a"'), "field 'name': 'a' is the name of two rules"),
    "short read": (
        rule(base='operations = ["read"]\neffect = { kind = "short", keep_bytes = 1 }\n'),
        "field 'effect.kind': 'short' is for 'write', not for 'read'",
    ),
    "short on a disk": (
        rule('on = "device"', base='operations = ["write"]\neffect = { kind = "short", keep_bytes = 1 }\n'),
        "field 'effect.kind': 'short' is for 'files', not for 'device'",
    ),
    "lost rename": (
        rule(base='operations = ["rename"]\neffect = { kind = "lose" }\n'),
        "field 'effect.kind': 'lose' is for 'write' or 'fsync', not for 'rename'",
    ),
    "mode below the pool": (
        rule('on = "data"', base='operations = ["write"]\neffect = { kind = "pool_mode", mode = "failed" }\n'),
        "field 'effect.kind': 'pool_mode' is for 'files' or 'device', not for 'data'",
    ),
    "bit": (rule(base='operations = ["write"]\neffect = { kind = "flip", bit = 8 }\n'), "field 'effect.bit': 8 is not"),
    "two parts": (
        rule(base='operations = ["write"]\neffect = { kind = "tear", keep_bytes = 1, keep_sectors = [1] }\n'),
        "field 'effect.keep_sectors': beside keep_bytes",
    ),
    "seconds": (
        rule(base='operations = ["write"]\neffect = { kind = "delay", seconds = -1 }\n'),
        "field 'effect.seconds'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_plan_is_one_line_with_rule_and_field(case: str) -> None:
    text, message = WRONG[case]
    with pytest.raises(UsageError) as caught:
        parse_plan(text)
    assert message in caught.value.message
    assert caught.value.message.isprintable()


def test_a_plan_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="missing cannot be read: no such file or directory"):
        read_plan(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="binary is not a text in UTF-8"):
        read_plan(tmp_path / "binary")
    (tmp_path / "long").write_text("#" * (1 << 20) + "\n")
    with pytest.raises(UsageError, match="long has more than 1048576 characters, too many for a plan"):
        read_plan(tmp_path / "long")
    (tmp_path / "plan").write_text(WHOLE)
    assert read_plan(tmp_path / "plan") == parse_plan(WHOLE)


def test_a_plan_has_a_limit() -> None:
    with pytest.raises(UsageError, match="there are 1001 rules, and at most 1000 are possible"):
        checked([Rule(effect=Error(), operations=DISK_OPERATIONS, on="data")] * 1001)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.wal", "/a/b.wal", True),
        ("*.wal", "/a.wal/b", False),
        ("b", "/a/b", True),
        ("b?", "/a/b", False),
        ("/a/*", "/a/b", True),
        ("/a/*", "/a/b/c", False),
        ("/a/**", "/a/b/c", True),
        ("/a/**/c", "/a/c", True),
        ("/a/**/c", "/a/x/y/c", True),
        ("**/c", "/x/c", True),
        ("/*/b", "/a/b", True),
        ("a/b", "/x/a/b", True),
        ("a/b", "/a/b", True),
        ("a/b", "/xa/b", False),
        ("a/**", "/x/a/b/c", True),
        ("/a/b", "/x/a/b", False),
        ("[ab].db", "/b.db", True),
        ("[!ab].db", "/b.db", False),
        ("[!ab].db", "/c.db", True),
        ("a+(b).db", "/a+(b).db", True),
        ("*", "/a\nb", True),
    ],
)
def test_patterns_of_paths(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path) is expected


def test_patterns_of_devices() -> None:
    assert matches_name("*", "a/b")
    assert matches_name("web-?", "web-1")
    assert not matches_name("web", "web-1")
