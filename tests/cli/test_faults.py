"""The commands `faults`, and faults that a mount has from its beginning, as root and as an ordinary user."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.mounted_home import SMALL, MountedHome

if TYPE_CHECKING:
    from tests.conftest import Account

pytestmark = pytest.mark.fuse


def test_faults_by_the_command_line(account: Account, needs_fuse: None) -> None:
    mounted = MountedHome(account)
    mounted.run("init", *SMALL)
    mounted.run("create", "web")
    assert json.loads(mounted.run("--json", "faults", "list").stdout) == {"faults": []}
    assert "nothing of the home" in mounted.refused(2, "faults", "add", "web", "error", "write")
    mounted.run("mount", "web", mounted.target)
    try:
        added = mounted.json(
            *("faults", "add", "web", "error", "write", "--path", "*.wal", "--errno", "ENOSPC"),
            *("--after", "1", "--times", "1", "--rule", "full"),
        )
        (report,) = added["faults"]
        assert (report["rule"]["name"], report["seen"], report["hits"]) == ("full", 0, 0)
        assert report["rule"]["effect"] == {"kind": "error", "errno": "ENOSPC"}
        assert mounted.run("faults", "add", "web", "tear", "write", "--keep-sectors", "1,3").stdout == "added rule-1\n"
        script = 'for i in 1 2 3; do echo $i >> "$0/a.wal" && echo "$i is written"; done'
        said = account.run(["sh", "-c", script, mounted.target], check=False)
        assert said.stdout == "1 is written\n3 is written\n"
        header, full, torn = mounted.run("faults", "list").stdout.splitlines()
        assert header.split() == ["RULE", "EFFECT", "OPERATIONS", "WHERE", "WHEN", "SEEN", "HITS"]
        words = [
            "full",
            "error",
            "errno=ENOSPC",
            "write",
            "files",
            "web",
            "*.wal",
            "after",
            "1,",
            "times",
            "1",
            "3",
            "1",
        ]
        assert full.split() == words
        assert torn.split() == ["rule-1", "tear", "keep_sectors=1,3", "write", "files", "web", "always", "3", "3"]
        assert "2 in force, see 'faults list'" in mounted.run("status").stdout
        assert mounted.json("status")["faults"] == 2
        assert "no rule 'nope'; in force: 'full', 'rule-1'" in mounted.refused(2, "faults", "clear", "nope")
        assert mounted.run("faults", "clear").stdout == "cleared full, hits: 1\ncleared rule-1, hits: 3\n"
        assert "faults" not in mounted.json("status")
    finally:
        mounted.run("umount", mounted.target)


def test_a_mount_with_a_plan(account: Account, needs_fuse: None) -> None:
    mounted = MountedHome(account)
    mounted.run("init", *SMALL)
    mounted.run("create", "web")
    plan = account.directory / "plan.toml"
    plan.write_text(
        '[[rules]]\ndevice = "web"\noperations = ["mkdir"]\neffect = { kind = "error", errno = "EMLINK" }\n'
    )
    mounted.run("mount", "--faults", "plan.toml", mounted.target)
    try:
        code = "import os, sys\ntry: os.mkdir(sys.argv[1])\nexcept OSError as error: print(error.errno)"
        assert account.run(["python", "-c", code, mounted.target / "web" / "d"]).stdout == f"{errno.EMLINK}\n"
        assert mounted.json("faults", "list")["faults"][0]["hits"] == 1
    finally:
        mounted.run("umount", mounted.target)
    plan.write_text(plan.read_text().replace("EMLINK", "EFOO"))
    line = mounted.refused(2, "mount", "--faults", "plan.toml", "web", mounted.target)
    assert "plan.toml, rule 1, field 'effect.errno': 'EFOO' is not an errno; give its name, as in EIO or ENOSPC" in line
    line = mounted.refused(2, "mount", "--faults", "missing.toml", "web", mounted.target)
    assert "missing.toml cannot be read: no such file or directory" in line
