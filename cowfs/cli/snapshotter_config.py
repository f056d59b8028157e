"""The configuration file of the snapshotter: the options of its command line, in TOML."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec

from cowfs.cli.settings import LogOptions
from cowfs.errors import UsageError

_MOST_CHARACTERS: Final = 1 << 20


class SnapshotterConfig(msgspec.Struct, frozen=True, kw_only=True, rename=lambda name: name.replace("_", "-")):
    """What a file says, by the names of the options without their dashes."""

    home: str | None = None
    backend: str | None = None
    storage_opt: tuple[str, ...] = ()
    socket: str | None = None
    containerd: str | None = None
    block_devices: bool = False
    answer_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=60.0)] | None = None
    log: str | None = None
    quiet: bool = False
    verbose: int = 0

    @property
    def log_options(self) -> LogOptions:
        return LogOptions(self.quiet, self.verbose, self.log)


def read_config(path: str) -> SnapshotterConfig:
    """Raises UsageError: the file cannot be read, or has what is no option, with the line."""
    import tomllib

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)
    except OSError as error:
        raise UsageError(f"--config: cannot read {path}: {error.strerror}", errno=error.errno) from error
    except UnicodeDecodeError:
        raise UsageError(f"--config: {path} is not a text in UTF-8") from None
    if len(text) > _MOST_CHARACTERS:
        raise UsageError(f"--config: {path} has more than {_MOST_CHARACTERS} characters, too many for options")
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--config: {path} is not TOML: {str(error)[0].lower()}{str(error)[1:]}") from None
    for name in raw:
        if name not in SnapshotterConfig.__struct_encode_fields__:
            known = ", ".join(SnapshotterConfig.__struct_encode_fields__)
            raise UsageError(
                f"{_place(path, text, name)}: '{name}' is not an option of a snapshotter, which has {known}"
            )
    return _converted(raw, path, text)


def _converted(raw: dict[str, Any], path: str, text: str) -> SnapshotterConfig:
    try:
        config = msgspec.convert(raw, SnapshotterConfig)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$.")
        name = re.split(r"[`\[]", where)[0]
        raise UsageError(f"{_place(path, text, name)}: '{name}': {problem.lower().replace('`', chr(39))}") from None
    if config.quiet and config.verbose:
        raise UsageError(f"{_place(path, text, 'quiet')}: quiet shows less and verbose more; leave one of them out")
    return config


def _place(path: str, text: str, name: str) -> str:
    """The file and the line of a key, which is its own or that of a table."""
    key = re.compile(rf"\s*(\[+\s*)?[\"']?{re.escape(name)}[\"']?\s*[=.\]]")
    numbers = (number for number, line in enumerate(text.splitlines(), 1) if key.match(line))
    return f"--config: {path}, line {next(numbers, '?')}"
