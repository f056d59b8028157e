"""Who one is to a registry, from Docker's configuration: `$DOCKER_CONFIG/config.json`, or `~/.docker/config.json`.

    auths        host -> user and password in base64, or an identity token
    credHelpers  host -> the program `docker-credential-NAME`, which keeps them
    credsStore   the program for all other hosts

Source: docker/cli 20.10, `cli/config`; docker-credential-helpers, `client/client.go`.
"""

from __future__ import annotations

import base64
import binascii
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from cowfs.errors import CowfsError, MissingRequirement
from cowfs.oci.reference import PUBLIC_HOST

_PUBLIC_KEY: Final = "https://index.docker.io/v1/"
_MAX_CONFIG_BYTES: Final = 4 << 20
_HELPER: Final = re.compile(r"[A-Za-z0-9_.-]+")
_HELPER_SECONDS: Final = 60
_IDENTITY_TOKEN: Final = "<token>"  # noqa: S105  (what a helper calls the user whose secret is one)
_NOT_FOUND: Final = "credentials not found"


class CredentialsError(CowfsError):
    """The configuration with the credentials, or the program that keeps them, cannot be used."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password; or an identity token, for which the registry's token server gives tokens."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of the header Authorization."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Config(msgspec.Struct, frozen=True, rename="camel"):
    auths: dict[str, _Entry] = {}
    cred_helpers: dict[str, str] = {}
    creds_store: str = ""


class _Answer(msgspec.Struct, frozen=True, rename="pascal"):
    username: str = ""
    secret: str = ""


class DockerConfig:
    """The configuration at a path. It may be missing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def credentials_for(self, host: str) -> Credentials | None:
        """What it has for a registry; None where it has nothing.

        Raises:
            CredentialsError: the configuration is damaged, or its program fails.
            MissingRequirement: the program is not there.
        """
        config = _read(self.path)
        if config is None:
            return None
        key = _PUBLIC_KEY if host == PUBLIC_HOST else host
        helper = config.cred_helpers.get(host) or config.cred_helpers.get(key) or config.creds_store
        if helper:
            found = _ask(helper, key, self.path)
            if found is not None:
                return found
        for name, entry in config.auths.items():
            if key in (name, _host_of(name)):
                found = _decode(entry, name, self.path)
                if found is not None:
                    return found
        return None


def _host_of(name: str) -> str:
    """The host in a key, which may be a URL in old configurations."""
    return name.partition("://")[2].partition("/")[0] if "://" in name else name.partition("/")[0]


def _read(path: Path) -> _Config | None:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CredentialsError(f"cannot read the credentials in {path}: {error.strerror}", errno=error.errno) from error
    try:
        return msgspec.json.decode(data, type=_Config)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CredentialsError(f"{path}, which has the credentials for registries, is damaged: {error}") from None


def _decode(entry: _Entry, name: str, path: Path) -> Credentials | None:
    user, password = entry.username, entry.password
    if entry.auth:
        try:
            user, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise CredentialsError(f"{path} is damaged: 'auth' of {name!r} is not 'USER:PASSWORD' in base64")
        password = password.strip("\0")
    if not user and not entry.identitytoken:
        return None
    return Credentials(user, password, entry.identitytoken)


def _ask(helper: str, key: str, path: Path) -> Credentials | None:
    """What a program keeps for a registry; None where it keeps nothing."""
    program = f"docker-credential-{helper}"
    if not _HELPER.fullmatch(helper):
        raise CredentialsError(f"{path} is damaged: {helper[:80]!r} cannot be the name of a program for credentials")
    found = shutil.which(program)
    if found is None:
        raise MissingRequirement(
            f"{path} says that {program} keeps the credentials for {key}, and there is no such program",
            remedy="docker logout, or take it out of the configuration",
        )
    try:
        done = subprocess.run(
            [found, "get"], check=False, input=key.encode(), capture_output=True, timeout=_HELPER_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CredentialsError(f"{found}, asked for the credentials for {key}, failed: {error}") from error
    if done.returncode:
        text = (done.stdout.strip() or done.stderr.strip()).decode(errors="replace")
        if _NOT_FOUND in text:
            return None
        raise CredentialsError(
            f"{found}, asked for the credentials for {key}, failed: {text[:300] or 'no reason given'}"
        )
    try:
        answer = msgspec.json.decode(done.stdout, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise CredentialsError(f"{found}, asked for the credentials for {key}, gave no JSON") from None
    if answer.username == _IDENTITY_TOKEN:
        return Credentials(identity_token=answer.secret)
    return Credentials(answer.username, answer.secret) if answer.username else None
