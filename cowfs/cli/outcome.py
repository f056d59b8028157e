"""What becomes of a command: its exit status, and one line for an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import click

from cowfs.cli import output, signals
from cowfs.errors import CowfsError, UsageError

_GLOBAL_OPTIONS: Final = (
    *("--home", "--storage-opt", "--backend", "--json", "--uml", "--time-limit"),
    *("--quiet", "-q", "--verbose", "-v", "--log"),
)
BROKEN_PIPE: Final = 141


def status_of(command: Callable[[], Any], *, as_json: bool) -> int:
    """Run a command; its exit status. An error is printed."""
    try:
        result: Any = command()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return UsageError.exit_code
    except click.exceptions.Exit as error:  # after --help
        return error.exit_code
    except click.ClickException as error:
        return output.print_error(UsageError(_one_line(error)), as_json=as_json)
    except (click.Abort, KeyboardInterrupt) as error:
        output.print_line("cowfs: interrupted")
        return signals.exit_status(error)
    except CowfsError as error:
        return output.print_error(error, as_json=as_json)
    except BrokenPipeError:
        return silence_stdout()
    except SystemExit as error:  # click's end of a completion, and its answer to a pipe without a reader
        return silence_stdout() if error.code else 0
    except OSError as error:
        if os.environ.get("COWFS_DEBUG"):
            raise
        return output.print_error(error, as_json=as_json)
    return result if isinstance(result, int) else 0


def _one_line(error: click.ClickException) -> str:
    """What click complains about, as our errors are written."""
    if isinstance(error, click.NoSuchOption) and error.option_name in _GLOBAL_OPTIONS:
        name = error.option_name
        return f"no such option '{name}' of this command; {name} must come before it: cowfs {name} ... COMMAND"
    text = " ".join(error.format_message().split()).rstrip(".")
    text = text[:1].lower() + text[1:]
    context = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "cowfs"
    return f"{text}; see '{context} --help'"


def silence_stdout() -> int:
    """The reader of the output has closed it; make sure that nothing complains about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return BROKEN_PIPE
