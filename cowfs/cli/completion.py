"""The command `completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell: commands, options, and device names of the home in use.

    \b
      bash    eval "$(cowfs completion bash)"           in ~/.bashrc
      zsh     eval "$(cowfs completion zsh)"            in ~/.zshrc
      fish    cowfs completion fish > ~/.config/fish/completions/cowfs.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    completion = kind(ctx.find_root().command, {}, "cowfs", "_COWFS_COMPLETE")
    print(completion.source_template % completion.source_vars())
