"""Names of images in registries: `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`.

As with Docker, a name without a host is of the public registry, and one without a tag or a digest has the tag `latest`.

Source: distribution 2.8, `reference/regexp.go` and `reference/normalize.go`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cowfs.errors import UsageError

PUBLIC_HOST: Final = "docker.io"
_PUBLIC_ALIASES: Final = ("index.docker.io", "registry-1.docker.io")
_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_REPOSITORY_CHARACTERS: Final = 255
_LATEST: Final = "latest"
_EXAMPLE: Final = "a name is [HOST[:PORT]/]REPOSITORY[:TAG][@sha256:DIGEST], as in registry.example.org/team/web:1"


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry. `tag` is None where a digest alone was given, `digest` where none was."""

    host: str
    repository: str
    tag: str | None
    digest: str | None

    @property
    def wanted(self) -> str:
        """What to ask the registry for: the digest, or the tag."""
        return self.digest or self.tag or _LATEST

    @property
    def is_public(self) -> bool:
        return self.host == PUBLIC_HOST

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}{tag}{digest}"


def parse_reference(text: str) -> Reference:
    """Raises UsageError, which says what is wrong with the text."""
    for scheme in ("http://", "https://", "docker://", "oci://"):
        if text.startswith(scheme):
            raise UsageError(
                f"{text!r} is not the name of an image: leave out {scheme!r}; "
                "a registry without TLS is reached with --insecure"
            )
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _wrong(text, f"{digest[:80]!r} is not a digest, which is 'sha256:' and 64 hexadecimal digits")
    first, slash, remainder = rest.partition("/")
    host = PUBLIC_HOST
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        host, rest = first, remainder
    repository, tag = rest, None
    if ":" in rest.rpartition("/")[2]:
        repository, _, tag = rest.rpartition(":")
    if not _HOST.fullmatch(host) or not 0 < int(host.rpartition(":")[2] if _has_port(host) else 1) < 65536:
        raise _wrong(text, f"{host!r} is not a host")
    if host in _PUBLIC_ALIASES:
        host = PUBLIC_HOST
    if tag is not None and not _TAG.fullmatch(tag):
        raise _wrong(text, f"{tag!r} is not a tag, which has letters, digits, '_', '.' and '-', at most 128 of them")
    if repository != repository.lower():
        raise _wrong(text, f"the repository {repository!r} has capital letters")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > _REPOSITORY_CHARACTERS:
        raise _wrong(text, f"{repository[:80]!r} is not a repository")
    if host == PUBLIC_HOST and "/" not in repository:
        repository = f"library/{repository}"
    return Reference(host, repository, tag if tag or digest else _LATEST, digest or None)


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _wrong(text: str, problem: str) -> UsageError:
    return UsageError(f"{text[:200]!r} is not the name of an image: {problem}; {_EXAMPLE}")
