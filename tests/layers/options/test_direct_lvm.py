"""direct-lvm with programs that are played: the exact sequence, every check, every failure."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cowfs.devices import opening
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.errors import HomeError, MissingRequirement, UsageError
from cowfs.layers.direct_lvm import prepare_pool, read_config
from cowfs.layers.lvm_config import POOL_NAME, LvmConfig
from cowfs.pool import load_backend
from tests.layers.options.test_homes import SMALL

DISK = "/dev/xvdf"
FREE_PV = (
    f'  "{DISK}" is a new physical volume of "8.00 GiB"\n  --- NEW Physical volume ---\n  VG Name               \n'
)
ANSWERS = {"lvmdiskscan": f"  /dev/sda1 [ 40.00 GiB]\n  {DISK}  [  8.00 GiB]\n", "pvdisplay": FREE_PV}
STEPS = [
    ["pvcreate", "-f", DISK],
    ["vgcreate", "docker", DISK],
    ["lvcreate", "--wipesignatures", "y", "-n", "thinpool", "docker", "--extents", "95%VG"],
    ["lvcreate", "--wipesignatures", "y", "-n", "thinpoolmeta", "docker", "--extents", "1%VG"],
    ["lvconvert", "-y", "--zero", "n", "-c", "512K", "--thinpool", "docker/thinpool", "--poolmetadata",
     "docker/thinpoolmeta"],
    ["lvchange", "--metadataprofile", "docker-thinpool", "docker/thinpool"],
]  # fmt: skip
CHECKS = [["lvmdiskscan"], ["pvdisplay", DISK], ["blkid", DISK]]
UNDO = [["vgremove", "-f", "docker"], ["pvremove", DISK]]


class Played:
    """Programs with prepared answers; `ran` has every call."""

    def __init__(
        self,
        answers: dict[str, str] | None = None,
        *,
        failing: Callable[[Sequence[str]], bool] = lambda _: False,
        missing: Sequence[str] = (),
    ) -> None:
        self.ran: list[list[str]] = []
        self._answers = ANSWERS if answers is None else answers
        self._failing = failing
        self._missing = missing

    def find(self, command: str, package: str) -> str:
        if command in self._missing:
            raise MissingRequirement(f"{command} is not installed", remedy=f"apt-get install {package}")
        return f"/usr/sbin/{command}"

    def run(self, command: str, arguments: Sequence[str], package: str) -> tuple[int, str]:
        self.find(command, package)
        argv = [command, *arguments]
        self.ran.append(argv)
        if self._failing(argv):
            return 5, f"  {command}: no luck\n\n  on line two\n"
        if command == "blkid" and command not in self._answers:
            return 2, ""
        return 0, self._answers.get(command, "")


class Setup:
    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.files = HomeFiles(str(self.home))
        self.profiles = folder / "lvm" / "profile"
        self.json = self.home / "setup-config.json"

    def prepare(self, commands: Played, *, force: bool = False, **parts: int) -> str:
        config = LvmConfig(device=DISK, **parts)
        return prepare_pool(self.files, config, force=force, commands=commands, profile_directory=str(self.profiles))

    def refusal(self, commands: Played, *, force: bool = False) -> str:
        with pytest.raises(HomeError) as caught:
            self.prepare(commands, force=force)
        assert not self.json.exists()
        return str(caught.value)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def profile_text(threshold: int, percent: int) -> str:
    return (
        f"activation {{\n  thin_pool_autoextend_threshold={threshold}\n  thin_pool_autoextend_percent={percent}\n}}\n"
    )


def test_the_steps(setup: Setup) -> None:
    commands = Played()
    assert setup.prepare(commands) == POOL_NAME == "docker-thinpool"
    assert commands.ran == CHECKS + STEPS
    profile = setup.profiles / "docker-thinpool.profile"
    assert profile.read_text() == profile_text(80, 20)
    assert stat.S_IMODE(profile.stat().st_mode) == 0o600


def test_the_values_of_the_user(setup: Setup) -> None:
    commands = Played()
    setup.prepare(commands, thinp_percent=70, thinp_metapercent=3, autoextend_threshold=90, autoextend_percent=10)
    assert [argv[-1] for argv in commands.ran if argv[0] == "lvcreate"] == ["70%VG", "3%VG"]
    assert (setup.profiles / "docker-thinpool.profile").read_text() == profile_text(90, 10)
    assert setup.json.read_bytes() == (
        b'{"Device":"/dev/xvdf","ThinpPercent":70,"ThinpMetaPercent":3,"AutoExtendPercent":10,"AutoExtendThreshold":90}'
    )


def test_what_is_stored_is_what_the_user_said(setup: Setup) -> None:
    setup.prepare(Played())
    assert stat.S_IMODE(setup.json.stat().st_mode) == 0o600
    assert setup.json.read_bytes() == (
        b'{"Device":"/dev/xvdf","ThinpPercent":0,"ThinpMetaPercent":0,"AutoExtendPercent":0,"AutoExtendThreshold":0}'
    )
    assert read_config(setup.files) == LvmConfig(device=DISK)


def test_a_second_start_only_uses_it(setup: Setup) -> None:
    setup.prepare(Played())
    commands = Played(missing=["pvcreate"])
    assert setup.prepare(commands) == POOL_NAME
    assert commands.ran == []


def test_another_configuration_later(setup: Setup) -> None:
    setup.prepare(Played())
    commands = Played()
    with pytest.raises(UsageError) as caught:
        setup.prepare(commands, autoextend_percent=30)
    assert str(caught.value) == "changing direct-lvm config is not supported"
    assert commands.ran == []


def test_an_empty_file_is_no_setup(setup: Setup) -> None:
    setup.json.touch()
    setup.prepare(Played())
    assert read_config(setup.files) == LvmConfig(device=DISK)


@pytest.mark.parametrize("content", [b"{", b'{"Device":3}', b"\xff\xfe", b"[]", b'{"ThinpPercent":"5"}'])
def test_a_damaged_file(setup: Setup, content: bytes) -> None:
    setup.json.write_bytes(content)
    commands = Played()
    with pytest.raises(HomeError, match=r"setup-config\.json is damaged"):
        setup.prepare(commands)
    assert commands.ran == []
    assert setup.json.read_bytes() == content


def test_a_home_may_be_made_beside_it(setup: Setup) -> None:
    setup.prepare(Played())
    with opening.make_home(setup.home, load_backend("emulated"), SMALL):
        pass
    assert read_config(setup.files) == LvmConfig(device=DISK)


# ---------------------------------------------------------------------------- the disk


def test_a_disk_that_lvm_does_not_list(setup: Setup) -> None:
    commands = Played(ANSWERS | {"lvmdiskscan": "  /dev/sda1 [ 40.00 GiB]\n  /dev/xvdf1 [ 1.00 GiB]\n"})
    assert setup.refusal(commands) == "/dev/xvdf is not available for use with devicemapper"
    assert commands.ran == CHECKS[:1]


def test_a_disk_that_lvm_lists_by_its_other_name(setup: Setup, tmp_path: Path) -> None:
    link, disk = tmp_path / "by-id", tmp_path / "disk"
    disk.touch()
    link.symlink_to(disk)
    commands = Played(ANSWERS | {"lvmdiskscan": f"  {disk} [ 40.00 GiB]\n"})
    config = LvmConfig(device=str(link))
    prepare_pool(setup.files, config, commands=commands, profile_directory=str(setup.profiles))
    assert ["pvcreate", "-f", str(link)] in commands.ran


@pytest.mark.parametrize("force", [False, True])
def test_a_disk_of_a_volume_group(setup: Setup, force: bool) -> None:
    text = f"  --- Physical volume ---\n  PV Name               {DISK}\n  VG Name               vg data\n"
    commands = Played(ANSWERS | {"pvdisplay": text})
    assert setup.refusal(commands, force=force) == (
        '/dev/xvdf is already part of a volume group "vg data": must remove this device from any volume group or '
        "provide a different device"
    )
    assert commands.ran == CHECKS[:2]


BLKID = f'{DISK}: UUID="a b" TYPE="ext4" PARTUUID="c"\n'


def test_a_disk_with_a_filesystem(setup: Setup) -> None:
    commands = Played(ANSWERS | {"blkid": BLKID})
    assert setup.refusal(commands) == (
        "/dev/xvdf has a filesystem already, use dm.directlvm_device_force=true if you want to wipe the device"
    )
    assert commands.ran == CHECKS


def test_a_disk_with_a_filesystem_taken_all_the_same(setup: Setup) -> None:
    commands = Played(ANSWERS | {"blkid": BLKID})
    setup.prepare(commands, force=True)
    assert commands.ran == CHECKS[:2] + STEPS


@pytest.mark.parametrize("text", [f'{DISK}: PTUUID="1" PTTYPE="dos"\n', f'{DISK}: TYPE=""\n'])
def test_a_disk_without_a_filesystem(setup: Setup, text: str) -> None:
    commands = Played(ANSWERS | {"blkid": text})
    setup.prepare(commands)
    assert commands.ran == CHECKS + STEPS


@pytest.mark.parametrize("silent", ["lvmdiskscan", "pvdisplay", "blkid"])
@pytest.mark.parametrize("way", ["missing", "failing"])
def test_a_check_whose_program_does_not_work_is_left_out(setup: Setup, silent: str, way: str) -> None:
    bad = {"lvmdiskscan": "nothing", "pvdisplay": " VG Name vg\n", "blkid": BLKID}
    answers = ANSWERS | {silent: bad[silent]}
    if way == "missing":
        commands = Played(answers, missing=[silent])
    else:
        commands = Played(answers, failing=lambda argv: argv[0] == silent)
    assert setup.prepare(commands) == POOL_NAME
    assert commands.ran[-len(STEPS) :] == STEPS


# ---------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        (["lvcreate"], "direct-lvm needs lvcreate, not installed here; try: apt-get install lvm2"),
        (
            ["thin_check"],
            "direct-lvm needs thin_check, not installed here; try: apt-get install thin-provisioning-tools",
        ),
        (
            ["pvcreate", "vgcreate", "thin_check"],
            (
                "direct-lvm needs pvcreate, vgcreate, thin_check, not installed here; "
                "try: apt-get install lvm2 thin-provisioning-tools"
            ),
        ),
    ],
)
def test_missing_programs(setup: Setup, missing: list[str], text: str) -> None:
    commands = Played(missing=missing)
    with pytest.raises(MissingRequirement) as caught:
        setup.prepare(commands)
    assert str(caught.value) == text
    assert commands.ran == []
    assert not setup.json.exists()


@pytest.mark.parametrize("number", range(len(STEPS)), ids=[" ".join(step[:5]) for step in STEPS])
def test_a_step_that_fails_is_reported_and_those_before_it_taken_back(setup: Setup, number: int) -> None:
    commands = Played(failing=lambda argv: argv == STEPS[number])
    text = setup.refusal(commands)
    name = STEPS[number][0]
    assert text == f"direct-lvm on {DISK}: {name} failed with status 5: {name}: no luck; on line two"
    undo = UNDO if number >= 2 else UNDO[1:] if number == 1 else []
    assert commands.ran == CHECKS + STEPS[: number + 1] + undo
    # Nothing stands in the way of another attempt.
    assert setup.prepare(Played()) == POOL_NAME


def test_steps_that_cannot_be_taken_back(setup: Setup) -> None:
    commands = Played(failing=lambda argv: argv[0] in ("lvconvert", "vgremove", "pvremove"))
    said = "no luck; on line two"
    assert setup.refusal(commands) == (
        f"direct-lvm on {DISK}: lvconvert failed with status 5: lvconvert: {said}; taking back what was made failed, "
        f"too: vgremove -f docker failed with status 5: vgremove: {said}; "
        f"pvremove {DISK} failed with status 5: pvremove: {said}"
    )
    assert commands.ran == CHECKS + STEPS[:5] + UNDO


def test_a_setup_that_cannot_be_noted_is_taken_back(setup: Setup) -> None:
    class Failing:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def rename(self, src: str, dst: str) -> None:
            raise OSError(28, "No space left on device")

    setup.files = HomeFiles(str(setup.home), system=Failing())  # type: ignore[arg-type]
    commands = Played()
    assert "No space left" in setup.refusal(commands)
    assert commands.ran == CHECKS + STEPS + UNDO


def test_a_profile_that_cannot_be_written(setup: Setup) -> None:
    setup.profiles.parent.mkdir()
    setup.profiles.write_text("not a directory")
    commands = Played()
    assert "docker-thinpool.profile" in setup.refusal(commands)
    assert commands.ran == CHECKS


def test_a_link_in_the_place_of_the_profile_is_not_followed(setup: Setup, tmp_path: Path) -> None:
    setup.profiles.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (setup.profiles / "docker-thinpool.profile").symlink_to(victim)
    assert "docker-thinpool.profile" in setup.refusal(Played())
    assert victim.read_text() == "kept"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            LvmConfig(thinp_percent=95, thinp_metapercent=1),
            "must provide device path in `dm.directlvm_device` in order to configure direct-lvm",
        ),
        (
            LvmConfig(device=DISK, thinp_percent=95),
            "must set both `dm.thinp_percent` and `dm.thinp_metapercent` if either is specified",
        ),
        (
            LvmConfig(device=DISK, thinp_percent=60, thinp_metapercent=41),
            "combined `dm.thinp_percent` and `dm.thinp_metapercent` must not be greater than 100",
        ),
    ],
)
def test_configurations_that_cannot_be(setup: Setup, config: LvmConfig, text: str) -> None:
    commands = Played()
    with pytest.raises(UsageError) as caught:
        prepare_pool(setup.files, config, commands=commands, profile_directory=str(setup.profiles))
    assert str(caught.value) == text
    assert commands.ran == []
