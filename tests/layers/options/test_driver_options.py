"""Every option of a driver: what it takes, what it refuses and in which words, and how options go together."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.errors import UsageError
from cowfs.layers.lvm_config import LvmConfig
from cowfs.layers.options import DOCKER_OPTIONS, DriverOptions, parse_storage_options

NOT_A_BOOL = 'strconv.ParseBool: parsing "maybe": invalid syntax'
NOT_A_UINT = 'strconv.ParseUint: parsing "many": invalid syntax'
LVM = "dm.directlvm_device=/dev/xvdf"

# (option, value, field, what it then holds)
GOOD = [
    ("dm.thinpooldev", "/dev/mapper/docker-pool", "thinpooldev", "docker-pool"),
    ("dm.thinpooldev", "docker-pool", "thinpooldev", "docker-pool"),
    ("dm.thinpooldev", "", "thinpooldev", ""),
    ("dm.directlvm_device", "/dev/xvdf", "directlvm_device", "/dev/xvdf"),
    ("dm.basesize", "20G", "basesize_bytes", 20 << 30),
    ("dm.basesize", "0", "basesize_bytes", 0),
    ("dm.loopdatasize", "200 GB", "loopdatasize_bytes", 200 << 30),
    ("dm.loopmetadatasize", "4g", "loopmetadatasize_bytes", 4 << 30),
    ("dm.fs", "ext4", "fs", "ext4"),
    ("dm.fs", "xfs", "fs", "xfs"),
    ("dm.mkfsarg", "-O ^has_journal", "mkfs_args", ("-O ^has_journal",)),
    ("dm.mountopt", "nodiscard", "mount_options", ("nodiscard",)),
    ("dm.datadev", "/dev/sdb1", "datadev", "/dev/sdb1"),
    ("dm.metadatadev", "/dev/sdc1", "metadatadev", "/dev/sdc1"),
    ("dm.blocksize", "512K", "blocksize_bytes", 512 << 10),
    ("dm.blkdiscard", "false", "blkdiscard", False),
    ("dm.blkdiscard", "T", "blkdiscard", True),
    ("dm.override_udev_sync_check", "true", "override_udev_sync_check", True),
    ("dm.use_deferred_removal", "1", "use_deferred_removal", True),
    ("dm.use_deferred_deletion", "F", "use_deferred_deletion", False),
    ("dm.min_free_space", "5%", "min_free_space_percent", 5),
    ("dm.min_free_space", "0%", "min_free_space_percent", 0),
    ("dm.min_free_space", "99%", "min_free_space_percent", 99),
    ("dm.xfs_nospace_max_retries", "0", "xfs_nospace_max_retries", 0),
    ("dm.xfs_nospace_max_retries", str(2**64 - 1), "xfs_nospace_max_retries", 2**64 - 1),
    *(("dm.libdm_log_level", str(level), "libdm_log_level", level) for level in range(2, 8)),
    ("dm.libdm_log_level", "+3", "libdm_log_level", 3),
]
# These need the device beside them.
GOOD_WITH_LVM = [
    ("dm.directlvm_device_force", "true", "directlvm_device_force", True),
    ("dm.thinp_percent", "0", "thinp_percent", 0),
    ("dm.thinp_percent", "0%", "thinp_percent", 0),
    ("dm.thinp_metapercent", "0%", "thinp_metapercent", 0),
    ("dm.thinp_autoextend_threshold", "100%", "thinp_autoextend_threshold", 100),
    ("dm.thinp_autoextend_threshold", "70", "thinp_autoextend_threshold", 70),
    ("dm.thinp_autoextend_percent", "100", "thinp_autoextend_percent", 100),
]

SIZES = ("dm.basesize", "dm.loopdatasize", "dm.loopmetadatasize", "dm.blocksize")
BOOLS = (
    "dm.directlvm_device_force",
    "dm.blkdiscard",
    "dm.override_udev_sync_check",
    "dm.use_deferred_removal",
    "dm.use_deferred_deletion",
)
PERCENTS = {
    "dm.thinp_percent": 100,
    "dm.thinp_metapercent": 100,
    "dm.thinp_autoextend_threshold": 101,
    "dm.thinp_autoextend_percent": 101,
}
BAD = [
    *((option, "many", "invalid size: 'many'") for option in SIZES),
    *((option, "-1G", "invalid size: '-1G'") for option in SIZES),
    *((option, "maybe", NOT_A_BOOL) for option in BOOLS),
    *((option, "many", f"could not parse `{option}=many`: {NOT_A_UINT}") for option in PERCENTS),
    *(
        (option, f"{least}%", f"{option} must be greater than 0 and less than 100")
        for option, least in PERCENTS.items()
    ),
    (
        "dm.thinp_percent",
        "4294967296",
        'could not parse `dm.thinp_percent=4294967296`: strconv.ParseUint: parsing "4294967296": value out of range',
    ),
    ("dm.fs", "btrfs", "devmapper: Unsupported filesystem btrfs"),
    ("dm.fs", "XFS", "devmapper: Unsupported filesystem XFS"),
    ("dm.fs", "", "devmapper: Unsupported filesystem "),
    ("dm.min_free_space", "10", "devmapper: Option dm.min_free_space requires % suffix"),
    ("dm.min_free_space", "1G", "devmapper: Option dm.min_free_space requires % suffix"),
    ("dm.min_free_space", "100%", "devmapper: Invalid value 100% for option dm.min_free_space"),
    ("dm.min_free_space", "many%", NOT_A_UINT),
    ("dm.min_free_space", "%", 'strconv.ParseUint: parsing "": invalid syntax'),
    ("dm.xfs_nospace_max_retries", "many", NOT_A_UINT),
    ("dm.xfs_nospace_max_retries", "-1", 'strconv.ParseUint: parsing "-1": invalid syntax'),
    ("dm.xfs_nospace_max_retries", str(2**64), f'strconv.ParseUint: parsing "{2**64}": value out of range'),
    (
        "dm.libdm_log_level",
        "loud",
        'could not parse `dm.libdm_log_level=loud`: strconv.ParseInt: parsing "loud": invalid syntax',
    ),
    ("dm.libdm_log_level", "1", "dm.libdm_log_level must be in range [2,7]"),
    ("dm.libdm_log_level", "8", "dm.libdm_log_level must be in range [2,7]"),
    ("dm.libdm_log_level", "-3", "dm.libdm_log_level must be in range [2,7]"),
]


def refusal(*options: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_storage_options(options)
    return str(caught.value)


def test_there_are_23_options() -> None:
    assert len(DOCKER_OPTIONS) == 23
    assert {option for option, *_ in GOOD + GOOD_WITH_LVM} == set(DOCKER_OPTIONS)


@pytest.mark.parametrize(("option", "value", "field", "result"), GOOD)
def test_good_values(option: str, value: str, field: str, result: Any) -> None:
    """Only the field of the option changes; the rest is as without options."""
    assert parse_storage_options([f"{option}={value}"]) == dataclasses.replace(DriverOptions(), **{field: result})


@pytest.mark.parametrize(("option", "value", "field", "result"), GOOD_WITH_LVM)
def test_good_values_beside_a_device(option: str, value: str, field: str, result: Any) -> None:
    expected = dataclasses.replace(DriverOptions(directlvm_device="/dev/xvdf"), **{field: result})
    assert parse_storage_options([LVM, f"{option}={value}"]) == expected


@pytest.mark.parametrize(("option", "value", "text"), BAD)
def test_bad_values(option: str, value: str, text: str) -> None:
    assert refusal(f"{option}={value}") == text


def test_every_option_with_a_grammar_is_among_the_bad() -> None:
    any_text = {"dm.thinpooldev", "dm.directlvm_device", "dm.mkfsarg", "dm.mountopt", "dm.datadev", "dm.metadatadev"}
    assert {option for option, *_ in BAD} == set(DOCKER_OPTIONS) - any_text


@pytest.mark.parametrize("option", DOCKER_OPTIONS)
def test_an_option_without_a_value(option: str) -> None:
    assert refusal(option) == f"Unable to parse key/value option: {option}"


@pytest.mark.parametrize("key", ["dm.nosuch", "size", "", "basesize", "dm.no_warn_on_loop_devices", "overlay2.size"])
def test_unknown_options(key: str) -> None:
    assert refusal(f"{key}=1") == f"devmapper: Unknown option {key}"


def test_the_case_of_a_key_does_not_matter() -> None:
    assert parse_storage_options(["DM.BaseSize=1G"]).basesize_bytes == 1 << 30
    assert refusal("DM.NoSuch=1") == "devmapper: Unknown option dm.nosuch"


def test_blanks_around_key_and_value_do_not_matter() -> None:
    assert parse_storage_options([" dm.fs =  xfs "]).fs == "xfs"


def test_only_the_first_equals_sign_separates() -> None:
    assert parse_storage_options(["dm.mountopt=context=a=b"]).mount_options == ("context=a=b",)


def test_a_later_option_replaces_an_earlier_one() -> None:
    options = ["dm.basesize=1G", "dm.fs=xfs", "dm.basesize=2G", "dm.fs=ext4", "DM.BASESIZE=3G"]
    assert parse_storage_options(options) == DriverOptions(basesize_bytes=3 << 30, fs="ext4")


def test_the_earlier_one_must_be_good_all_the_same() -> None:
    assert refusal("dm.basesize=none", "dm.basesize=1G") == "invalid size: 'none'"


def test_arguments_of_mkfs_and_mount_options_add_up() -> None:
    options = parse_storage_options(["dm.mkfsarg=-N", "dm.mountopt=a", "dm.mkfsarg=1000", "dm.mountopt=b,c"])
    assert options == DriverOptions(mkfs_args=("-N", "1000"), mount_options=("a", "b,c"))


def test_the_first_mistake_is_reported() -> None:
    assert refusal("dm.fs=vfat", "dm.basesize=none") == "devmapper: Unsupported filesystem vfat"


# ---------------------------------------------------------------------------- direct-lvm


@pytest.mark.parametrize(
    "option", ["dm.thinp_percent=5", "dm.thinp_autoextend_threshold=5", "dm.thinp_autoextend_percent=5"]
)
def test_parts_of_direct_lvm_without_its_device(option: str) -> None:
    expected = "must provide device path in `dm.directlvm_device` in order to configure direct-lvm"
    assert refusal(option) == expected
    assert refusal("dm.thinp_percent=5", "dm.thinp_metapercent=1") == expected


@pytest.mark.parametrize("option", ["dm.thinp_percent=5", "dm.thinp_metapercent=5"])
def test_one_percent_without_the_other(option: str) -> None:
    assert refusal(LVM, option) == "must set both `dm.thinp_percent` and `dm.thinp_metapercent` if either is specified"


def test_more_than_all_of_the_disk() -> None:
    expected = "combined `dm.thinp_percent` and `dm.thinp_metapercent` must not be greater than 100"
    assert refusal(LVM, "dm.thinp_percent=99", "dm.thinp_metapercent=2") == expected
    assert parse_storage_options([LVM, "dm.thinp_percent=99", "dm.thinp_metapercent=1"]).lvm == LvmConfig(
        device="/dev/xvdf", thinp_percent=99, thinp_metapercent=1
    )


def test_direct_lvm_beside_another_pool() -> None:
    expected = "cannot setup direct-lvm when `dm.thinpooldev` is also specified"
    assert refusal(LVM, "dm.thinpooldev=other") == expected


def test_force_alone_is_no_direct_lvm() -> None:
    assert parse_storage_options(["dm.directlvm_device_force=true"]).lvm.is_empty


# ---------------------------------------------------------------------------- properties


@given(st.lists(st.sampled_from([f"{option}={value}" for option, value, *_ in GOOD + GOOD_WITH_LVM]), max_size=8))
def test_two_readings_know_nothing_of_each_other(options: list[str]) -> None:
    """Nothing is kept in the process: the same options mean the same whatever was read in between."""
    options = [option for option in options if not option.startswith("dm.thinpooldev")]
    first = parse_storage_options([LVM, *options])
    assert parse_storage_options([]) == DriverOptions()
    assert parse_storage_options([LVM, *options]) == first


@given(
    st.lists(st.text(max_size=20) | st.sampled_from(DOCKER_OPTIONS).flatmap(lambda o: st.text().map(f"{o}=".__add__)))
)
def test_nothing_but_a_usage_error(options: list[str]) -> None:
    with suppress(UsageError):
        assert parse_storage_options(options) == parse_storage_options(options)
