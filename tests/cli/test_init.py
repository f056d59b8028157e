"""What `init` says of sizes that cannot be, and of a machine where it cannot work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Run

if TYPE_CHECKING:
    from tests.conftest import Account

SIZES = ("--metadata-size", "4M", "--base-size", "64M")


@pytest.mark.parametrize(
    "words",
    [
        ["--data-size", "1M", "--base-size", "10G"],
        ["--data-size", "512K", "--min-free", "0%"],
        ["--data-size", "64K", "--min-free", "80%"],
        ["--data-size", "2M", "--min-free", "2M"],
        ["--data-size", "4M", "--block-size", "2M"],
        ["--data-size", "1000"],
        ["--metadata-size", "4K", "--data-size", "64M"],
        ["--base-size", "100K", "--data-size", "64M"],
    ],
    ids=" ".join,
)
def test_what_is_too_small_names_the_least_that_will_do(tmp_path: Path, cowfs_anywhere: Run, words: list[str]) -> None:
    """Followed as often as it is given, the advice leads to a home in which a device can be made."""
    home = tmp_path / "home"
    words = [*SIZES, *words]
    outcome = cowfs_anywhere("--home", home, "init", *words)
    assert outcome.status == 2
    for _ in range(3):
        found = re.search(r"^(data|metadata|base) size .* take at least (\d+) ", outcome.error)
        assert found, outcome.error
        words += [f"--{found[1]}-size", found[2]]
        outcome = cowfs_anywhere("--home", home, "init", *words)
        if outcome.status == 0:
            break
    assert (outcome.status, outcome.err) == (0, "")
    created = cowfs_anywhere("--home", home, "create", "web")
    assert created.status == 0, created.err


def test_the_least_data_is_not_more_than_needed(tmp_path: Path, cowfs_anywhere: Run) -> None:
    words = [*SIZES, "--min-free", "0%"]
    error = cowfs_anywhere("--home", tmp_path / "home", "init", *words, "--data-size", "64K").error
    (least,) = re.findall(r"take at least (\d+) ", error)
    below = cowfs_anywhere("--home", tmp_path / "home", "init", *words, "--data-size", str(int(least) - 65536))
    assert below.status == 2
    assert f"take at least {least} " in below.error


def in_pid_namespace(account: Account, script: str, *options: str) -> str:
    """What a shell script prints as the first process of a pid namespace, where /proc stays that of the outer one."""
    unshare = ["unshare", "--pid", "--fork", *options]
    if account.run([*unshare, "true"], check=False).returncode:
        pytest.skip("this machine lets root make no pid namespace; in a container: docker run --privileged")
    return account.run([*unshare, "sh", "-ec", script]).stdout


@pytest.mark.fuse
def test_it_works_where_proc_is_of_an_outer_pid_namespace(root_user: Account, needs_fuse: None) -> None:
    """The server is found by its pid inside, so that 'umount' waits for it: the home is free when that returns."""
    out = in_pid_namespace(
        root_user,
        f"""
        mkdir mnt
        export COWFS_HOME="$PWD/home"
        cowfs init --data-size 64M {" ".join(SIZES)}
        cowfs create web
        cowfs mount web mnt
        echo hello > mnt/file
        cowfs umount mnt
        cowfs status | grep 'Lock holder'
        """,
    )
    assert re.search(r"Lock holder +none", out)


def test_a_proc_that_does_not_show_this_process_is_the_cause_that_is_named(root_user: Account) -> None:
    init = f"cowfs --home home init --data-size 64M {' '.join(SIZES)} 2>&1 || echo status $?"
    out = in_pid_namespace(root_user, f"mount -t tmpfs none /proc; {init}", "--mount")
    assert "/proc does not show this process" in out
    assert "TMPDIR" not in out
    assert out.endswith("status 3\n")
