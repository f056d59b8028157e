"""Names of images, and platforms."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.errors import UsageError
from cowfs.oci.documents import (
    OCI_INDEX,
    OCI_MANIFEST,
    BadImage,
    Index,
    Manifest,
    Platform,
    check_is_image,
    choose,
    decode_config,
    decode_manifest,
    parse_platform,
)
from cowfs.oci.reference import Reference, parse_reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("debian", "docker.io", "library/debian", "latest", None),
        ("debian:12", "docker.io", "library/debian", "12", None),
        ("team/web", "docker.io", "team/web", "latest", None),
        ("docker.io/debian", "docker.io", "library/debian", "latest", None),
        ("index.docker.io/team/web:1", "docker.io", "team/web", "1", None),
        ("localhost/web", "localhost", "web", "latest", None),
        ("localhost:5000/web:1", "localhost:5000", "web", "1", None),
        ("[::1]:5000/a/b_c/d--e", "[::1]:5000", "a/b_c/d--e", "latest", None),
        (f"quay.io/a/b@{DIGEST}", "quay.io", "a/b", None, DIGEST),
        (f"quay.io/a/b:1@{DIGEST}", "quay.io", "a/b", "1", DIGEST),
    ],
)
def test_names(text: str, host: str, repository: str, tag: str | None, digest: str | None) -> None:
    found = parse_reference(text)
    assert found == Reference(host, repository, tag, digest)
    assert found.wanted == (digest or tag)
    assert parse_reference(str(found)) == found


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is not a repository"),
        ("http://localhost/web", "leave out 'http://'.*--insecure"),
        ("docker://debian", "leave out 'docker://'"),
        ("Debian", "has capital letters"),
        ("a//b", "is not a repository"),
        ("a/../b", "is not a repository"),
        ("web:", "'' is not a tag"),
        ("web:a b", "'a b' is not a tag"),
        ("web:" + "x" * 129, "is not a tag"),
        ("web@sha256:abc", "is not a digest"),
        ("web@md5:" + "a" * 32, "is not a digest"),
        ("host:99999/web", "'host:99999' is not a host"),
        ("host:0/web", "'host:0' is not a host"),
        ("ho_st.x/web", "is not a host"),
        ("user:pass@host/web", "is not a digest"),
        ("a" * 300, "is not a repository"),
        ("web\n", "is not a repository"),
    ],
)
def test_what_is_no_name(text: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as raised:
        parse_reference(text)
    assert "\n" not in str(raised.value)


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        found = parse_reference(text)
    except UsageError:
        return
    assert parse_reference(str(found)) == found


def test_platforms() -> None:
    assert parse_platform("linux/arm64/v8") == Platform("arm64", "linux", "v8")
    for text in ("linux", "linux/", "/amd64", "a/b/c/d", "linux/AMD", "linux/amd 64"):
        with pytest.raises(UsageError, match="is not a platform"):
            parse_platform(text)
    with pytest.raises(UsageError, match="it names none"):
        choose(Index(2, []), Platform("amd64", "linux"), "it")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from([DIGEST, OCI_MANIFEST, OCI_INDEX]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "schemaVersion",
                    "mediaType",
                    "config",
                    "layers",
                    "manifests",
                    "digest",
                    "size",
                    "platform",
                    "rootfs",
                    "x",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
def test_any_document_is_a_manifest_or_refused(data: bytes) -> None:
    with contextlib.suppress(BadImage):
        found = decode_manifest(data, "it")
        if isinstance(found, Manifest):
            check_is_image(found, "it")
    with contextlib.suppress(BadImage):
        decode_config(data, [], "it")
