"""Commands that are imported when they run, listed by section."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from cowfs.cli import signals
from cowfs.cli.commands import GROUPS, Command, GroupOfCommands, Section

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class LazyGroup(click.Group):
    """Commands that are imported when they run; listed by section, one whole sentence each.

    Args:
        sections: The commands, by the title of their section.
        aliases: Hidden names -> group and command.
        default: The command that is meant by a word that names none.
    """

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Section],
        aliases: Mapping[str, tuple[str, str]] | None = None,
        default: str = "",
        **attributes: Any,
    ) -> None:
        super().__init__(*args, **attributes)
        self._default = default
        self.sections = sections
        self._aliases = aliases or {}
        self._entries = {name: entry for section in sections.values() for name, entry in section.items()}

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except signals.Ended as error:  # click ends the terminal's line as well, which is right after Ctrl-C alone
            raise click.Abort from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._aliases:
            group, name = self._aliases[cmd_name]
            return _load(name, GROUPS[group].commands[name])
        entry = self._entries.get(cmd_name)
        return None if entry is None else _load(cmd_name, entry)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self._default and args and args[0] not in self._entries and args[0] not in ctx.help_option_names:
            args = [self._default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-") and not ctx.resilient_parsing:
            from cowfs.cli.suggestions import no_such_command

            raise no_such_command(ctx, args[0])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self._entries))
        for title, section in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), entry.summary) for name, entry in section.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        found = [(name, entry.summary) for name, entry in self._entries.items() if name.startswith(incomplete)]
        items = [CompletionItem(name, help=summary) for name, summary in found]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]


def _load(name: str, entry: Command | GroupOfCommands) -> click.Command:
    if isinstance(entry, GroupOfCommands):
        return LazyGroup(
            name,
            sections={"Commands": entry.commands},
            default=entry.default,
            help=entry.help,
            short_help=entry.summary,
        )
    command = getattr(importlib.import_module(f"cowfs.cli.{entry.module}"), f"{name.replace('-', '_')}_command")
    assert isinstance(command, click.Command)
    command.short_help = entry.summary
    return command
