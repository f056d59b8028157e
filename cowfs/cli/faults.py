"""The commands of the group faults: add, list, clear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from cowfs.cli import output
from cowfs.cli.settings import DEVICE, PATH, SIZE, Settings
from cowfs.errors import UsageError

if TYPE_CHECKING:
    from cowfs.faults.rules import FaultReport
    from cowfs.home.api.home import Home

_KINDS: Final = ("error", "delay", "short", "tear", "flip", "lose", "no-space", "pool-mode", "crash")
_PLACES: Final = ("files", "device", "data", "metadata", "commit")


class _RangeType(click.ParamType[tuple[int, int]]):
    """BEGIN:END, the end not included."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        begin, separator, end = value.partition(":")
        if not separator:
            self.fail(f"'{value}' is not BEGIN:END, as in 4K:8K", param, ctx)
        return 0 if begin in ("", "0") else SIZE.convert(begin, param, ctx), SIZE.convert(end, param, ctx)


_RANGE: Final = _RangeType()


@click.command("add")
@click.argument("name", required=False, type=DEVICE)
@click.argument("kind", required=False, type=click.Choice(_KINDS), metavar="[KIND]")
@click.argument("operations", nargs=-1, metavar="[OPERATION]...")
@click.option("--plan", type=PATH, metavar="FILE", help="Add the rules of a plan in TOML instead.")
@click.option(
    "--on",
    metavar="PLACE",
    type=click.Choice(_PLACES),
    help="Where: files, the requests of programs; device, its disk; data or metadata, a disk of the pool; commit. "
    "[default: files]",
)
@click.option("--path", metavar="PATTERN", help="Only files of this name, as in '*.wal', or path, as in '/db/**'.")
@click.option("--bytes", "range_bytes", type=_RANGE, metavar="BEGIN:END", help="Only these bytes of the file or disk.")
@click.option("--blocks", "range_blocks", type=_RANGE, metavar="BEGIN:END", help="Only these blocks of the disk.")
@click.option("--after", type=int, metavar="N", help="Let N operations pass first.")
@click.option("--times", type=int, metavar="N", help="Stop when N operations have met the fault. [default: never]")
@click.option("--nth", type=int, metavar="N", help="Only the Nth operation.")
@click.option(
    "--probability", type=float, metavar="P", help="Probability that an operation meets the fault. [default: 1]"
)
@click.option("--seed", type=int, metavar="N", help="Seed of the random numbers of the fault. [default: 0]")
@click.option("--rule", "rule_name", metavar="NAME", help="Name of the fault. [default: rule-1, rule-2, ...]")
@click.option("--errno", metavar="NAME", help="With error and tear: how operations fail. [default for error: EIO]")
@click.option("--seconds", metavar="SECONDS", type=float, help="With delay: how long operations wait.")
@click.option(
    "--keep-bytes", metavar="BYTES", type=int, help="With short and tear: how many of the first bytes arrive."
)
@click.option("--keep-sectors", metavar="LIST", help="With tear: which sectors of the write arrive, as in 0,2,3.")
@click.option(
    "--offset",
    "offset_bytes",
    metavar="BYTES",
    type=int,
    help="With flip: where in the file or disk. [default: anywhere, by --seed]",
)
@click.option("--bit", metavar="N", type=int, help="With flip: which bit of the byte, from 0 to 7. [default: 0]")
@click.option(
    "--of", type=click.Choice(["data", "metadata"]), help="With no-space: what the pool is full of. [default: data]"
)
@click.option(
    "--mode",
    metavar="MODE",
    help="With pool-mode: read_only, needs_check, out_of_data_space, out_of_metadata_space or failed.",
)
@click.pass_obj
def add_command(
    settings: Settings,
    /,
    name: str | None,
    kind: str | None,
    operations: tuple[str, ...],
    plan: str | None,
    rule_name: str | None,
    **given: Any,
) -> None:
    """Inject a fault into operations on the device NAME of a mounted home, from now on; '*' is for every device.

    \b
    KIND, what happens:
      error      operations fail with --errno            delay      operations wait for --seconds
      short      writes say that they are incomplete     tear       writes arrive in part, and succeed
      lose       operations succeed and do nothing       flip       one bit is wrong
      no-space   the pool is full                        pool-mode  the pool goes into --mode
      crash      the server of the mount ends at once

    \b
    OPERATION, one or more:
      with --on files: open, read, write, truncate, fsync, readdir, create, mkdir, symlink,
        link, unlink, rmdir, rename, setattr, setxattr, removexattr
      with --on device, data or metadata: read, write, discard, flush
      with --on commit none: it is the commit of the pool's metadata

    \b
      cowfs faults add web error write --path '*.wal' --errno EIO --after 3 --times 1
      cowfs faults add web delay fsync --seconds 0.2
      cowfs faults add '*' flip read --on device --offset 4096 --bit 3
      cowfs faults add --plan plan.toml

    Faults last until 'faults clear', or until the mount ends.
    """
    from cowfs.faults.plan import convert_rule, read_plan

    given = {field: value for field, value in given.items() if value is not None}
    if plan is not None:
        if name is not None or given or rule_name is not None:
            raise UsageError("--plan excludes all other options and arguments; give it alone: faults add --plan FILE")
        rules = read_plan(plan).rules
    elif name is None or kind is None:
        raise UsageError("which fault? faults add NAME KIND [OPERATION]..., or faults add --plan FILE")
    else:
        rules = (convert_rule(_rule(name, kind, operations, rule_name, given), "this command"),)
    with settings.open_home() as home:
        _require_mounted(home)
        added = home.add_faults(rules)
    if settings.as_json:
        output.print_json({"faults": added})
    else:
        for report in added:
            print(f"added {output.printable(report.rule.name)}")


def _rule(
    name: str, kind: str, operations: tuple[str, ...], rule_name: str | None, given: dict[str, Any]
) -> dict[str, Any]:
    """The rule as plain values, which are decoded as those of a plan."""
    of_effect = ("errno", "seconds", "keep_bytes", "keep_sectors", "offset_bytes", "bit", "of", "mode")
    effect = {field: given.pop(field) for field in of_effect if field in given}
    if (sectors := effect.get("keep_sectors")) is not None:
        words = sectors.split(",") if sectors else []
        effect["keep_sectors"] = [int(word) if word.strip().isdecimal() else word for word in words]
    device = {} if name == "*" else {"device": name}
    title = {} if rule_name is None else {"name": rule_name}
    return {**given, **device, **title, "operations": operations, "effect": {"kind": kind.replace("-", "_"), **effect}}


def _require_mounted(home: Home) -> None:
    if home.holder_pid is None:
        raise UsageError(
            f"nothing of the home {home.path} is mounted, and faults last as long as a mount: mount it first, or use "
            "'mount --faults PLAN'"
        )


def _where(report: FaultReport) -> str:
    rule = report.rule
    parts: list[str] = [rule.on]
    if rule.on in ("files", "device"):
        parts.append(rule.device)
    if rule.path:
        parts.append(rule.path)
    for unit, given in (("bytes", rule.range_bytes), ("blocks", rule.range_blocks)):
        if given is not None:
            parts.append(f"{unit} {given[0]}:{given[1]}")
    return " ".join(parts)


def _effect(report: FaultReport) -> str:
    fields = output.as_object(report.rule.effect)
    kind = str(fields.pop("kind")).replace("_", "-")
    return " ".join([kind, *(f"{field}={_plain(value)}" for field, value in fields.items() if value not in (None, ""))])


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _when(report: FaultReport) -> str:
    rule = report.rule
    words = [] if rule.nth is None else [f"nth {rule.nth}"]
    words += [f"after {rule.after}"] * bool(rule.after)
    words += [] if rule.times is None else [f"times {rule.times}"]
    words += [f"probability {rule.probability:g}"] * (rule.probability < 1)
    return ", ".join(words) or "always"


@click.command("list")
@click.pass_obj
def list_command(settings: Settings) -> None:
    """List the faults in force: how many operations counted for each, and how many of them met it."""
    with settings.open_home() as home:
        reports = home.list_faults()
    if settings.as_json:
        output.print_json({"faults": reports})
        return
    output.print_table(
        ["RULE", "EFFECT", "OPERATIONS", "WHERE", "WHEN", "SEEN", "HITS"],
        [
            [
                output.printable(report.rule.name),
                _effect(report),
                ",".join(report.rule.operations) or "commit",
                output.printable(_where(report)),
                _when(report),
                str(report.seen),
                str(report.hits),
            ]
            for report in reports
        ],
        right=frozenset({5, 6}),
    )


@click.command("clear")
@click.argument("rules", nargs=-1, metavar="[RULE]...")
@click.pass_obj
def clear_command(settings: Settings, rules: tuple[str, ...]) -> None:
    """Clear the faults named RULE, or all of them.

    When none is left, the mount handles its requests as if there had never been any.
    """
    with settings.open_home() as home:
        cleared = home.clear_faults(rules)
    if settings.as_json:
        output.print_json({"faults": cleared})
    else:
        for report in cleared:
            print(f"cleared {output.printable(report.rule.name)}, hits: {report.hits}")
