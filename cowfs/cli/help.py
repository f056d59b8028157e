"""The command `help`."""

from __future__ import annotations

import click

from cowfs.cli.suggestions import no_such_command


@click.command("help")
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_command(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of COMMAND, as 'cowfs COMMAND --help' does; without COMMAND list all commands.

    \b
      cowfs help mount
      cowfs help pool
      cowfs help pool resize
    """
    root = ctx.find_root()
    shown = click.Context(root.command, info_name=root.info_name, **root.command.context_settings)
    for word in words:
        group = shown.command
        command = group.get_command(shown, word) if isinstance(group, click.Group) else None
        if command is None:
            raise no_such_command(shown, word)
        shown = click.Context(command, info_name=word, parent=shown, **command.context_settings)
    click.echo(shown.get_help())
