"""The commands layer pull, push, import and export, as root and as an ordinary user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.mounted_home import MountedHome
from tests.conftest import Account
from tests.oci.layer_archives import LOWER, UPPER, docker_archive
from tests.oci.small_registry import SmallRegistry, digest_of


@pytest.fixture
def registry() -> Iterator[SmallRegistry]:
    with SmallRegistry() as running:
        yield running


class User:
    """An account with a home."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self.directory = account.directory
        self.run("init", "--data-size", "256M", "--metadata-size", "4M", "--base-size", "16M")

    def run(self, *words: str) -> str:
        return str(self._account.run(["cowfs", "--home", "home", *words]).stdout)

    def json(self, *words: str) -> Any:
        return json.loads(self.run("--json", *words))

    def refused(self, *words: str) -> tuple[int, str]:
        done = self._account.run(["cowfs", "--home", "home", *words], check=False)
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        return done.returncode, done.stderr


@pytest.fixture
def user(account: Account) -> User:
    return User(account)


def test_an_image_is_pulled_and_pushed(user: User, registry: SmallRegistry) -> None:
    registry.add_image("1", [LOWER, UPPER])
    said = user.run("layer", "pull", f"{registry.host}/web:1", "--name", "web").splitlines()
    digest = digest_of(registry.manifests["1"][0])
    assert said == [f"pulled {registry.host}/web:1 ({digest}): layers 2", "its files are layer web"]
    assert user.run("cat", "web:/etc/name") == "upper\n"
    pulled = user.json("layer", "pull", f"{registry.host}/web:1")
    assert [layer["state"] for layer in pulled["layers"]] == ["present", "present"]
    said = user.run("layer", "push", "web", f"{registry.host}/web:2").splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"pushed {registry.host}/web:2@sha256:")
    assert "layers 2, 0 B uploaded" in said[0]
    assert user.json("layer", "push", "web", f"{registry.host}/web:2")["image_id"] == pulled["image_id"]
    assert not list((user.directory / "home").glob("cowfs.downloads"))


def test_images_are_imported_and_exported(user: User) -> None:
    config = docker_archive(user.directory / "image.tar", [LOWER, UPPER], ["web:1"])
    (user.directory / "image.tar").chmod(0o644)
    said = user.run("layer", "import", "image.tar", "--name", "web").splitlines()
    assert said == ["imported web:1: layers 2", "its files are layer web"]
    said = user.run("layer", "export", "web", "-t", "web:1", "-o", "out.tar").splitlines()
    assert said[0].startswith(f"exported web:1: {digest_of(config)}, ")
    assert user.json("layer", "export", "web", "-t", "web:1", "--oci", "out")["image_id"] == digest_of(config)
    (again,) = user.json("layer", "import", "out", "--image", "web:1")
    assert again["image_id"] == digest_of(config)
    assert [layer["state"] for layer in again["layers"]] == ["present", "present"]


def test_what_is_asked_wrongly(user: User, registry: SmallRegistry) -> None:
    docker_archive(user.directory / "image.tar", [LOWER], ["web:1"])
    (user.directory / "image.tar").chmod(0o644)
    assert user.refused("layer", "pull", "Web")[0] == 2
    assert user.refused("layer", "pull", f"{registry.host}/web", "--platform", "amd64")[0] == 2
    status, said = user.refused("layer", "pull", f"{registry.host}/web")
    assert (status, said) == (1, f"cowfs: there is no tag 'latest' in {registry.host}/web\n")
    status, said = user.refused("layer", "push", "nothing", f"{registry.host}/web")
    assert status == 5
    assert "there is no layer 'nothing'" in said
    assert user.refused("layer", "push", "base", f"{registry.host}/web@sha256:{'0' * 64}")[0] == 2
    assert (
        "there is no image 'other' in image.tar; there are: web:1"
        in user.refused("layer", "import", "image.tar", "--image", "other")[1]
    )
    assert (
        "'base' cannot be the name of a device" in user.refused("layer", "import", "missing.tar", "--name", "base")[1]
    )
    assert user.refused("layer", "export", "nothing", "-o", "out.tar")[0] == 5
    assert not (user.directory / "out.tar").exists()
    assert json.loads(user.run("--json", "layer", "list")) == []


@pytest.mark.fuse
@pytest.mark.slow
def test_a_mounted_home_takes_images_and_gives_them(
    account: Account, needs_fuse: None, registry: SmallRegistry
) -> None:
    home = MountedHome(account)
    home.run("init", "--data-size", "256M", "--metadata-size", "4M", "--base-size", "16M")
    registry.add_image("1", [LOWER, UPPER])
    account.mkdir("all")
    home.run("mount", "all")
    try:
        home.run("layer", "pull", f"{registry.host}/web:1", "--name", "web")
        home.shell("grep upper all/web/rootfs/etc/name && echo mine > all/web/rootfs/mine")
        home.run("layer", "push", "web", f"{registry.host}/web:2")
        manifest = json.loads(registry.manifests["2"][0])
        assert len(manifest["layers"]) == 3
    finally:
        home.run("umount", "all")
    home.run("check")
