"""What is in force on a machine: defaults, refusals, the file system."""

from __future__ import annotations

import dataclasses

import pytest

from cowfs.errors import MissingRequirement, UsageError
from cowfs.home.opened.backend_facts import driver_facts
from cowfs.layers.options import DriverOptions, Facts, Settings, parse_storage_options, resolve_options
from cowfs.pool import load_backend

EMULATED = Facts()
KERNEL = Facts(kernel_mounts=True, has_mkfs_xfs=True, kernel_knows_xfs=True, dm_version=(4, 47, 0))
OLD_KERNEL = dataclasses.replace(KERNEL, dm_version=(4, 26, 9))


def settings(*options: str, facts: Facts = EMULATED) -> Settings:
    return resolve_options(parse_storage_options(options), facts)


def refusal(*options: str, facts: Facts = EMULATED) -> str:
    with pytest.raises((UsageError, MissingRequirement)) as caught:
        settings(*options, facts=facts)
    return str(caught.value)


def test_defaults_in_user_space() -> None:
    assert settings() == Settings(
        filesystem="ext4",
        mkfs_args=(),
        mount_options="",
        xfs_nospace_max_retries=None,
        deferred_removal=True,
        deferred_deletion=True,
        min_free_percent=10,
    )


def test_defaults_on_the_kernel() -> None:
    assert settings(facts=KERNEL) == dataclasses.replace(settings(), kernel_mounts=True)


def test_minimum_free_space() -> None:
    assert settings("dm.min_free_space=0%").min_free_percent == 0
    assert settings("dm.min_free_space=25%").min_free_percent == 25


def test_facts_of_a_backend_in_user_space() -> None:
    assert driver_facts(load_backend("emulated")) == EMULATED


# ---------------------------------------------------------------------------- deferring

NEEDS_REMOVAL = (
    "devmapper: Deferred deletion can not be enabled as deferred removal is not enabled. "
    "Enable deferred removal using --storage-opt dm.use_deferred_removal=true parameter"
)
NEEDS_KERNEL = "devmapper: Deferred removal can not be enabled as kernel does not support it"


@pytest.mark.parametrize(
    ("facts", "removal", "deletion", "outcome"),
    [
        (EMULATED, None, None, (True, True)),
        (EMULATED, None, False, (True, False)),
        (EMULATED, False, None, NEEDS_REMOVAL),
        (EMULATED, False, False, (False, False)),
        (KERNEL, None, None, (True, True)),
        (KERNEL, False, None, NEEDS_REMOVAL),
        (KERNEL, False, True, NEEDS_REMOVAL),
        (dataclasses.replace(KERNEL, dm_version=(4, 27, 0)), None, None, (True, True)),
        (OLD_KERNEL, None, None, (False, False)),
        (OLD_KERNEL, True, None, NEEDS_KERNEL),
        (OLD_KERNEL, None, True, NEEDS_REMOVAL),
        (OLD_KERNEL, False, False, (False, False)),
    ],
)
def test_deferring(facts: Facts, removal: bool | None, deletion: bool | None, outcome: tuple[bool, bool] | str) -> None:
    options = DriverOptions(use_deferred_removal=removal, use_deferred_deletion=deletion)
    if isinstance(outcome, str):
        with pytest.raises(UsageError) as caught:
            resolve_options(options, facts)
        assert str(caught.value) == outcome
    else:
        found = resolve_options(options, facts)
        assert (found.deferred_removal, found.deferred_deletion) == outcome


# ---------------------------------------------------------------------------- the file system


def test_ext4_is_the_default_everywhere() -> None:
    for facts in (EMULATED, KERNEL, dataclasses.replace(KERNEL, has_mkfs_xfs=False)):
        assert settings(facts=facts).filesystem == "ext4"
        assert settings("dm.fs=ext4", facts=facts).filesystem == "ext4"


def test_who_shows_the_files_of_layers() -> None:
    assert not settings().kernel_mounts
    assert not settings("cowfs.mount=fuse").kernel_mounts
    assert settings(facts=KERNEL).kernel_mounts
    assert settings("cowfs.mount=kernel", facts=KERNEL).kernel_mounts
    assert not settings("cowfs.mount=fuse", facts=KERNEL).kernel_mounts
    assert refusal("cowfs.mount=kernel") == (
        "cowfs.mount=kernel needs a backend with device nodes; take cowfs.mount=fuse"
    )
    assert refusal("cowfs.mount=nfs") == "cowfs.mount is kernel or fuse, not 'nfs'"


def test_xfs_where_it_cannot_be() -> None:
    assert refusal("dm.fs=xfs") == (
        "dm.fs=xfs needs mounts by the kernel, which this backend does not make; take dm.fs=ext4"
    )
    text = refusal("dm.fs=xfs", facts=dataclasses.replace(KERNEL, has_mkfs_xfs=False))
    assert text == "dm.fs=xfs needs mkfs.xfs; try: apt-get install xfsprogs"
    text = refusal("dm.fs=xfs", facts=dataclasses.replace(KERNEL, kernel_knows_xfs=False))
    assert text == "dm.fs=xfs needs a kernel that knows xfs; try: modprobe xfs"
    assert refusal("dm.fs=xfs", "cowfs.mount=fuse", facts=KERNEL) == (
        "dm.fs=xfs needs mounts by the kernel; leave out cowfs.mount=fuse, or take dm.fs=ext4"
    )
    assert settings("dm.fs=xfs", facts=KERNEL).filesystem == "xfs"


@pytest.mark.parametrize(
    ("options", "filesystem", "label", "data"),
    [
        ([], "ext4", "", ""),
        ([], "xfs", "", "nouuid"),
        (["dm.mountopt=discard"], "ext4", "", "discard"),
        (["dm.mountopt=discard", "dm.mountopt=", "dm.mountopt=noatime,x"], "xfs", "", "nouuid,discard,noatime,x"),
        (["dm.mountopt=noatime"], "ext4", "a:b:c:s0,c1", 'noatime,context="a:b:c:s0,c1"'),
        ([], "ext4", "label", 'context="label"'),
    ],
)
def test_mount_options(options: list[str], filesystem: str, label: str, data: str) -> None:
    assert settings(*options).mount_data(filesystem, label) == data


def test_arguments_of_mkfs() -> None:
    assert settings("dm.mkfsarg=-N", "dm.mkfsarg=1000").mkfs_args == ("-N", "1000")
