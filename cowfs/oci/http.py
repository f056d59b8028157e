"""Requests to a registry over HTTP(S): who one is, redirects, limits; by httpx.

    What this module does itself, since a registry is not trusted:

    - Credentials and tokens go to the registry itself, and to the token server that it names; a redirect, or an upload
      that continues elsewhere, gets none.
    - Nothing goes from https on to http.
    - What is read of a document, a token or an error is limited; no body is decompressed on the way.

Certificates are checked against the system's authorities, or those of SSL_CERT_FILE and SSL_CERT_DIR, and those that
Docker has for the host in /etc/docker/certs.d. Proxies are those of the usual variables.

Source: distribution 2.8, docs/spec/auth/token.md and oauth.md; RFC 9110, 11.6.1.
"""

from __future__ import annotations

import errno
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from cowfs.errors import CowfsError, MissingRequirement
from cowfs.oci.credentials import Credentials, DockerConfig
from cowfs.oci.reference import PUBLIC_HOST
from cowfs.version import VERSION

try:
    import httpx
except ModuleNotFoundError as error:
    raise MissingRequirement(
        "registries are reached by the package httpx", remedy="pip install 'cowfs-thin[registry]'"
    ) from error

_PUBLIC_ADDRESS: Final = "registry-1.docker.io"
_CERTIFICATES: Final = Path("/etc/docker/certs.d")
_LOOPBACK: Final = re.compile(r"(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]+)?")
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_BUSY: Final = frozenset({429, 502, 503, 504})
_REDIRECTS_MAX: Final = 5
_TRIES: Final = 4
_WAITS_SECONDS: Final = (0.2, 1.0, 3.0)
_RETRY_AFTER_MAX_SECONDS: Final = 30
_TOKEN_BYTES_MAX: Final = 1 << 20
_ERROR_BYTES_MAX: Final = 64 << 10
_SHOWN_CHARACTERS: Final = 200
_PARAMETER: Final = re.compile(r"""\s*,?\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))""")
_SCHEME: Final = re.compile(r"\s*,?\s*([A-Za-z]+)(?=\s|$)")

Content = Callable[[], Iterable[bytes]]
Failure = (httpx.TransportError, httpx.StreamError, ssl.SSLError)


class RegistryError(CowfsError):
    """A registry cannot be reached, refuses, or does not say the truth."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a server wants to know first: a scheme, in lower case, with its parameters."""

    scheme: str
    parameters: Mapping[str, str]


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


class _Problem(msgspec.Struct, frozen=True):
    code: str = ""
    message: str | None = ""


class _Problems(msgspec.Struct, frozen=True):
    errors: list[_Problem] = []


@dataclass(slots=True)
class Answer:
    """What a server answered; its body is read as long as the block lasts."""

    response: httpx.Response = field(repr=False)
    url: httpx.URL

    @property
    def status(self) -> int:
        return self.response.status_code

    def header(self, name: str) -> str:
        return str(self.response.headers.get(name, ""))

    def pieces(self) -> Iterator[bytes]:
        """The body as it is sent. Raises one of `Failure` where it breaks off."""
        return self.response.iter_raw(1 << 20)

    def read(self, limit_bytes: int, what: str) -> bytes:
        """The body. Raises RegistryError for one that is longer, or breaks off."""
        parts = []
        left = limit_bytes
        try:
            for piece in self.pieces():
                parts.append(piece)
                left -= len(piece)
                if left < 0:
                    raise RegistryError(f"{what} has more than {limit_bytes} bytes, which none has")
        except Failure as error:
            raise RegistryError(f"{what} broke off: {reason(error)}") from error
        return b"".join(parts)

    def problem(self) -> str:
        """What the server says is wrong, for a message."""
        text = ""
        try:
            data = self.read(_ERROR_BYTES_MAX, "the error")
            problems = msgspec.json.decode(data, type=_Problems).errors
            text = "; ".join(one.message or one.code for one in problems[:3])
        except (RegistryError, msgspec.MsgspecError, UnicodeDecodeError):
            pass
        phrase = httpx.codes.get_reason_phrase(self.status)
        return f"HTTP {self.status} {phrase}".rstrip() + (f": {_shown(text)}" if text else "")


class Connection:
    """A registry, for one repository. Close it.

    Args:
        host: as in the names of images.
        scope: what is to be done, for the token server: `repository:NAME:pull,push`.
        config: where the credentials are.
        insecure: where TLS is not spoken, go on without it. So it is for addresses of this machine in any case.
        sleep: waits before what failed is tried again.
    """

    def __init__(
        self,
        host: str,
        scope: str,
        config: DockerConfig,
        *,
        insecure: bool = False,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.host = host
        self._scope = scope
        self._config = config
        self._may_be_plain = insecure or _LOOPBACK.fullmatch(host) is not None
        self._address = _PUBLIC_ADDRESS if host == PUBLIC_HOST else host
        self.sleep = sleep
        self._client = httpx.Client(
            verify=_certificates(host),
            timeout=httpx.Timeout(60.0, connect=30.0),
            follow_redirects=False,
            headers={"User-Agent": f"cowfs/{VERSION}", "Accept-Encoding": "identity"},
        )
        self._base: httpx.URL | None = None
        self._authorization = ""
        self._has_asked = False
        self._credentials: Credentials | None = None

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def request(
        self,
        method: str,
        target: str | httpx.URL,
        *,
        headers: Mapping[str, str] | None = None,
        content: Content | None = None,
        tries: int = _TRIES,
    ) -> Iterator[Answer]:
        """Ask the registry, or go on where it sent one.

        Args:
            target: a path below `/v2/`, or a whole address.
            content: makes the body, anew each time that it is sent; `headers` has its length.
            tries: how often in all, where the registry cannot be reached or is busy.

        Raises:
            RegistryError: it cannot be reached, or sends one where one does not go.
            What `Answer` says of Failure, inside the block.
        """
        url = self.resolve(target)
        with closing(self._send(method, url, dict(headers or {}), content, tries)) as response:
            yield Answer(response, response.request.url)

    def resolve(self, target: str | httpx.URL, base: httpx.URL | None = None) -> httpx.URL:
        """A whole address. Raises RegistryError for an address that leads from https to http, or is not an address."""
        origin = base or self._open()
        try:
            url = (origin if base is not None else origin.join("/v2/")).join(target)
        except (httpx.InvalidURL, ValueError):
            raise RegistryError(f"{self.host} redirects to {_shown(str(target))!r}, which is not an address") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise RegistryError(f"{self.host} redirects to {_shown(str(url))!r}, which is not HTTP")
        if origin.scheme == "https" and url.scheme == "http":
            raise RegistryError(
                f"{self.host} redirects from https to {_shown(str(url.copy_with(query=None)))!r}, which is without "
                "TLS; nothing was sent there"
            )
        return url

    # ------------------------------------------------------------------ sending

    def _send(
        self, method: str, url: httpx.URL, headers: dict[str, str], content: Content | None, tries: int
    ) -> httpx.Response:
        redirects = 0
        while True:
            response = self._send_once(method, url, headers, content, tries)
            if response.status_code == 401 and self._is_own(url) and self._authenticate(response):
                response.close()
                response = self._send_once(method, url, headers, content, tries)
                if response.status_code == 401:
                    with closing(response):
                        raise self._refused(Answer(response, url).problem())
            if response.status_code not in _REDIRECTS:
                return response
            location = response.headers.get("Location", "")
            response.close()
            redirects += 1
            if redirects > _REDIRECTS_MAX or not location:
                raise RegistryError(f"{self.host} redirects again and again, the last time to {_shown(location)!r}")
            if response.status_code in (301, 302, 303) and method not in ("GET", "HEAD"):
                raise RegistryError(f"{self.host} answered {method} with HTTP {response.status_code}")
            url = self.resolve(location, url)

    def _send_once(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], content: Content | None, tries: int
    ) -> httpx.Response:
        for number in range(tries):
            sent = dict(headers)
            if self._authorization and self._is_own(url):
                sent["Authorization"] = self._authorization
            is_last = number == tries - 1
            try:
                request = self._client.build_request(method, url, headers=sent, content=content() if content else None)
                response = self._client.send(request, stream=True)
            except Failure as error:
                if is_last or _is_about_certificate(error) or _is_about_location(error):
                    raise RegistryError(f"cannot reach {_place(url)}: {reason(error)}", errno=_errno(error)) from error
                self.sleep(_WAITS_SECONDS[min(number, len(_WAITS_SECONDS) - 1)])
                continue
            if response.status_code not in _BUSY or is_last:
                return response
            response.close()
            self.sleep(_retry_after(response, number))
        raise AssertionError("unreachable")

    def _is_own(self, url: httpx.URL) -> bool:
        """Whether an address is the registry's own, which may know who one is."""
        base = self._open()
        return (url.scheme, url.host, url.port) == (base.scheme, base.host, base.port)

    def _open(self) -> httpx.URL:
        """The registry's address: of https, unless it speaks none and may be plain."""
        if self._base is None:
            self._base = httpx.URL(f"https://{self._address}/")
            if self._may_be_plain and not self._speaks_tls(self._base):
                self._base = httpx.URL(f"http://{self._address}/")
        return self._base

    def _speaks_tls(self, base: httpx.URL) -> bool:
        try:
            self._client.head(base.join("/v2/"))
        except (httpx.TransportError, ssl.SSLError) as error:
            if _is_about_certificate(error):
                raise RegistryError(f"cannot reach {_place(base)}: {reason(error)}") from error
            return False
        return True

    # ------------------------------------------------------------------ who one is

    def _authenticate(self, response: httpx.Response) -> bool:
        """Answer a challenge; whether there is something new to say.

        Raises:
            RegistryError: there are no credentials, they are refused, or the challenge is of no kind that is known.
        """
        challenges = [found for value in response.headers.get_list("WWW-Authenticate") for found in parse(value)]
        before = self._authorization
        self._find_credentials()
        for challenge in challenges:
            if challenge.scheme == "bearer":
                self._authorization = f"Bearer {self._fetch_token(challenge.parameters)}"
                return self._authorization != before
        if any(challenge.scheme == "basic" for challenge in challenges):
            if self._credentials is None or not self._credentials.user:
                raise self._no_credentials()
            self._authorization = self._credentials.basic
            if self._authorization == before:
                raise self._refused("HTTP 401")
            return True
        schemes = ", ".join(challenge.scheme for challenge in challenges) or "none"
        raise RegistryError(f"{self.host} wants to know who you are, by a way that is not known here: {schemes}")

    def _find_credentials(self) -> None:
        if not self._has_asked:
            self._credentials = self._config.credentials_for(self.host)
            self._has_asked = True

    def _fetch_token(self, parameters: Mapping[str, str]) -> str:
        realm = self.resolve(parameters.get("realm", ""), self._open())
        fields = {"service": parameters["service"]} if "service" in parameters else {}
        scopes = parameters.get("scope", "").split() or [self._scope]
        if self._scope not in scopes and all(scope.partition(":")[0] != "repository" for scope in scopes):
            scopes.append(self._scope)
        found = self._credentials
        try:
            if found is not None and found.identity_token:
                form = {
                    **fields,
                    "grant_type": "refresh_token",
                    "refresh_token": found.identity_token,
                    "client_id": "cowfs",
                    "scope": " ".join(scopes),
                }
                request = self._client.build_request("POST", realm, data=form)
            else:
                headers = {} if found is None else {"Authorization": found.basic}
                query: list[tuple[str, str | int | float | bool | None]] = [("scope", scope) for scope in scopes]
                request = self._client.build_request(
                    "GET", realm.copy_merge_params([*fields.items(), *query]), headers=headers
                )
            with closing(self._client.send(request, stream=True)) as response:
                answer = Answer(response, realm)
                if answer.status in (400, 401, 403):
                    problem = answer.problem()
                    raise self._refused(problem) if found is not None else self._no_credentials(problem)
                if answer.status != 200:
                    raise RegistryError(f"{_place(realm)} gives no token for {self.host}: {answer.problem()}")
                data = answer.read(_TOKEN_BYTES_MAX, f"the token from {_place(realm)}")
        except Failure as error:
            raise RegistryError(f"cannot reach {_place(realm)} for a token: {reason(error)}") from error
        try:
            token = msgspec.json.decode(data, type=_Token)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            token = _Token()
        text = token.token or token.access_token
        if not text.isascii() or not text.isprintable() or not text:
            raise RegistryError(f"{_place(realm)} gives no token for {self.host}: the answer has no token")
        return text

    def _no_credentials(self, problem: str = "") -> RegistryError:
        why = f" ({problem})" if problem else ""
        return RegistryError(
            f"{self.host} wants to know who you are{why}, and {self._config.path} has no credentials for it; run: "
            f"docker login {self.host}",
            errno=errno.EACCES,
        )

    def _refused(self, problem: str) -> RegistryError:
        if self._credentials is None:
            return self._no_credentials(problem)
        user = self._credentials.user
        whose = f" of {user!r}" if user else ""
        return RegistryError(
            f"{self.host} refuses the credentials{whose} from {self._config.path}: {problem}; run: docker login "
            f"{self.host}",
            errno=errno.EACCES,
        )


def parse(value: str) -> list[Challenge]:
    """The challenges of a header WWW-Authenticate; what cannot be read of it is left out."""
    found: list[Challenge] = []
    position = 0
    while scheme := _SCHEME.match(value, position):
        position = scheme.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(value, position):
            position = parameter.end()
            quoted = re.sub(r"\\(.)", r"\1", parameter[2]) if parameter[2] is not None else parameter[3]
            parameters.setdefault(parameter[1].lower(), quoted)
        found.append(Challenge(scheme[1].lower(), parameters))
    return found


def reason(error: Exception) -> str:
    """Why a request failed, in words."""
    if isinstance(error, httpx.TimeoutException):
        return "it does not answer in time"
    if _is_about_location(error):
        return "it redirects to what is not an address"
    if isinstance(error, httpx.RemoteProtocolError):
        return "the connection was cut"
    text = str(error) or type(error).__name__
    if "WRONG_VERSION_NUMBER" in text or "wrong version number" in text:
        return "it does not speak TLS; a registry without it is reached with --insecure"
    if _is_about_certificate(error):
        return f"its certificate is not trusted ({_shown(text)}); SSL_CERT_FILE names a file with other authorities"
    return _shown(text.partition("] ")[2] or text)


def _is_about_location(error: Exception) -> bool:
    return "Invalid URL in location header" in str(error)


def _is_about_certificate(error: Exception) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def _certificates(host: str) -> ssl.SSLContext:
    """The system's authorities, and what Docker has for a host. Raises RegistryError for what cannot be read."""
    context = ssl.create_default_context()
    directory = _CERTIFICATES / host
    try:
        names = sorted(directory.iterdir()) if directory.is_dir() else []
        for path in names:
            if path.suffix == ".crt":
                context.load_verify_locations(path)
            elif path.suffix == ".cert":
                context.load_cert_chain(path, path.with_suffix(".key"))
    except OSError as error:
        raise RegistryError(f"cannot read the certificates in {directory}: {error}", errno=error.errno) from error
    return context


def _retry_after(response: httpx.Response, number: int) -> float:
    text = response.headers.get("Retry-After", "")
    wanted = float(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0.0
    return min(max(wanted, _WAITS_SECONDS[min(number, len(_WAITS_SECONDS) - 1)]), _RETRY_AFTER_MAX_SECONDS)


def _errno(error: Exception) -> int:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
            return cause.errno
        cause = cause.__cause__ or cause.__context__
    return errno.EIO


def _place(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode(errors='replace').rpartition('@')[2]}"


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
