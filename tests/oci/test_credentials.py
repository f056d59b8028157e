"""Docker's configuration, its helper programs, and certificates."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from cowfs.errors import MissingRequirement
from cowfs.oci.credentials import Credentials, CredentialsError, DockerConfig
from cowfs.oci.http import RegistryError, parse
from tests.oci.conftest import Puller
from tests.oci.layer_archives import LOWER
from tests.oci.small_registry import SmallRegistry
from tests.oci.test_lying_registry import ask_for_basic, login

HELPER = """\
#!/bin/sh
test "$1" = get || exit 3
read -r server
case $server in
host:1) echo '{"ServerURL": "host:1", "Username": "me", "Secret": "kept"}';;
host:2) echo '{"ServerURL": "host:2", "Username": "<token>", "Secret": "identity"}';;
https://index.docker.io/v1/) echo '{"Username": "public", "Secret": "kept"}';;
host:3) echo 'no keyring here'; exit 1;;
host:4) echo 'not JSON';;
*) echo 'credentials not found in native keychain'; exit 1;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "docker-credential-test"
    program.parent.mkdir()
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def configured(directory: Path, **config: object) -> DockerConfig:
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    return DockerConfig(path)


def encoded(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_no_configuration_has_nothing(tmp_path: Path) -> None:
    assert DockerConfig(tmp_path / "config.json").credentials_for("host:1") is None
    assert configured(tmp_path).credentials_for("host:1") is None


def test_passwords_in_the_configuration(tmp_path: Path) -> None:
    config = configured(
        tmp_path,
        auths={
            "host:1": encoded("me", "with:colon"),
            "https://old.example.org/v1/": encoded("old", "1"),
            "https://index.docker.io/v1/": encoded("public", "2"),
            "host:2": {"username": "plain", "password": "3"},
            "host:3": {"identitytoken": "token"},
        },
        HttpHeaders={"something": "else"},
    )
    assert config.credentials_for("host:1") == Credentials("me", "with:colon")
    assert config.credentials_for("old.example.org") == Credentials("old", "1")
    assert config.credentials_for("docker.io") == Credentials("public", "2")
    assert config.credentials_for("host:2") == Credentials("plain", "3")
    assert config.credentials_for("host:3") == Credentials(identity_token="token")
    assert config.credentials_for("host") is None
    assert "with:colon" not in repr(config.credentials_for("host:1"))


def test_helper_programs(tmp_path: Path, helper: None) -> None:
    config = configured(
        tmp_path, credsStore="test", credHelpers={"host:9": "gone"}, auths={"host:5": encoded("a", "b")}
    )
    assert config.credentials_for("host:1") == Credentials("me", "kept")
    assert config.credentials_for("host:2") == Credentials(identity_token="identity")
    assert config.credentials_for("docker.io") == Credentials("public", "kept")
    assert config.credentials_for("host:5") == Credentials("a", "b")
    assert config.credentials_for("host:6") is None
    with pytest.raises(CredentialsError, match=r"docker-credential-test, asked for .* host:3, failed: no keyring here"):
        config.credentials_for("host:3")
    with pytest.raises(CredentialsError, match="gave no JSON"):
        config.credentials_for("host:4")
    with pytest.raises(MissingRequirement, match="docker-credential-gone keeps the credentials for host:9"):
        config.credentials_for("host:9")


def test_a_helper_is_a_program_and_no_path(tmp_path: Path, helper: None) -> None:
    with pytest.raises(CredentialsError, match="cannot be the name of a program"):
        configured(tmp_path, credsStore="../../bin/sh").credentials_for("host:1")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"auths": 1}', '{"auths": {"host": {"auth": "%%%"}}}', "\xff"])
def test_a_damaged_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CredentialsError, match="damaged"):
        DockerConfig(tmp_path / "config.json").credentials_for("host")


def test_challenges_are_read() -> None:
    (basic, bearer) = parse(
        'Basic realm="a \\"b\\"", Bearer realm="https://x/token?a=b",service=y, scope="r:a:pull,push"'
    )
    assert (basic.scheme, basic.parameters) == ("basic", {"realm": 'a "b"'})
    assert bearer.parameters == {"realm": "https://x/token?a=b", "service": "y", "scope": "r:a:pull,push"}
    for text in ("", ",,,", "Basic", 'Bearer realm="', "=", "Bearer =", "é" * 50):
        parse(text)


# ------------------------------------------------------------------ certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl; run: sudo apt-get install openssl")
    path = tmp_path_factory.mktemp("certificate") / "localhost.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        str(path),
        "-out",
        f"{path}.crt",
    ]
    subprocess.run(["openssl", "req", "-x509", "-days", "3", *names, *key], check=True, capture_output=True)
    return path


@pytest.fixture
def secure(registry: SmallRegistry, certificate: Path) -> SmallRegistry:
    """The registry with TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{certificate}.crt", certificate)
    registry.server.socket = context.wrap_socket(registry.server.socket, server_side=True)
    return registry


def test_a_certificate_has_to_be_trusted(
    homes: list[Path], puller: Puller, secure: SmallRegistry, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure.add_image("1", [LOWER])
    login(puller, secure.host)
    with pytest.raises(RegistryError, match=r"its certificate is not trusted .*; SSL_CERT_FILE names"):
        puller.pull(homes[0], f"{secure.host}/web:1")
    assert secure.requests == []
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    secure.before.append(ask_for_basic)
    assert puller.pull(homes[0], f"{secure.host}/web:1").layers


def test_nothing_goes_from_https_on_to_http(
    homes: list[Path], puller: Puller, secure: SmallRegistry, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    secure.add_image("1", [LOWER])
    login(puller, secure.host)
    with SmallRegistry(blobs=secure.blobs) as plain:
        for status, header in (
            (307, {"Location": f"http://{plain.host}/v2/web/blobs/x"}),
            (401, {"WWW_Authenticate": f'Bearer realm="http://{plain.host}/token"'}),
        ):
            secure.before[:] = [
                lambda handler, status=status, header=header: handler.answer(status, b"", **header)  # type: ignore[misc]
            ]
            with pytest.raises(
                RegistryError, match=r"from https to 'http://.*, which is without TLS; nothing was sent"
            ):
                puller.pull(homes[0], f"{secure.host}/web:1")
        assert plain.requests == []
