"""The POSIX cases, over the tree view as root and as an ordinary user."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection

import pytest

from tests.conftest import Account
from tests.fuse.conftest import Serve, Served
from tests.kit import posix

pytestmark = pytest.mark.fuse

_OF_VOLUMES = {"access_control_lists", "an_access_list_takes_setgid_away", "rename_leaves_a_whiteout"}


def run_cases(account: Account, served: Served, leave_out: Collection[str] = ()) -> None:
    cases = [case for case in posix.applicable(is_root=not account.uid) if case.run.__name__ not in leave_out]
    ids = sorted(case.id for case in cases)
    done = account.run([sys.executable, posix.__file__, served.target, *ids], check=False)
    passed = sorted(line.split()[1] for line in done.stdout.splitlines() if line.startswith("passed "))
    assert passed == ids, "\n".join([done.stdout, served.logged()])
    assert done.returncode == 0, done.stderr
    assert served.end() == 0
    assert "closed cleanly" in served.logged()


def test_cases_over_memory(account: Account, serve: Serve) -> None:
    run_cases(account, serve(account, "memory"), _OF_VOLUMES)


def test_cases_over_ext4(account: Account, serve: Serve) -> None:
    image = account.directory / "image"
    with open(image, "wb") as file:
        file.truncate(1 << 30)
    os.chown(image, account.uid, account.gid)
    owner = f"root_owner={account.uid}:{account.gid},lazy_itable_init=1"
    subprocess.run(["mkfs.ext4", "-q", "-E", owner, image], check=True)
    run_cases(account, serve(account, "volume", image))
    subprocess.run(["e2fsck", "-fn", image], check=True, stdout=subprocess.PIPE)
