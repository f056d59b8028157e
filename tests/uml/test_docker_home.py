"""A home that Docker left, on the kernel's pool: the same trees as on the emulated one; tests/data/README.md."""

from __future__ import annotations

import json
import re
import sys

from cowfs.uml import UmlKernel
from tests.conftest import REPOSITORY, Account
from tests.docker_home import DIRECTORY, LAYER_1, LAYER_2, LAYER_3, UNPACK
from tests.kit.guests import run_in_guest_of
from tests.uml.guest_docker_home import CLOSED


def plain(text: str) -> str:
    """Without what the guest has otherwise: the numbers of file systems, and whether discards reach a file."""
    return re.sub(r"docker-\d+:\d+-", "docker-", text.replace("no_discard_passdown", "discard_passdown"))


def test_both_backends_show_the_same_trees(uml_kernel: UmlKernel, account: Account, needs_fuse: None) -> None:
    account.run(UNPACK)
    home, point = account.directory / DIRECTORY, account.mkdir("point")
    cowfs = ["cowfs", "--home", home]
    account.run([*cowfs, "mount", "--read-only", point])
    try:
        script = (
            "import json, os, sys; from pathlib import Path; from tests.uml.guest_docker_home import describe_tree\n"
            "root = Path(sys.argv[1])\n"
            "print(json.dumps({name: describe_tree(root / name) for name in sorted(os.listdir(root))}))\n"
        )
        trees = json.loads(account.run([sys.executable, "-c", script, point], cwd=REPOSITORY).stdout)
    finally:
        account.run(["cowfs", "umount", point])
    told = {what: account.run([*cowfs, what]).stdout for what in ("list", "dmstatus", "dump")}
    assert trees.keys() == {LAYER_1, LAYER_2, LAYER_3}

    output = run_in_guest_of(account, uml_kernel, "tests.uml.guest_docker_home", home, point)
    records = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    for how in ("kernel", "view"):
        found = {record["name"]: record["tree"] for record in records if record["how"] == how}
        for name, tree in trees.items():
            assert tree.keys() == found[name].keys()
            for path, entry in tree.items():
                assert entry[:-1] == found[name][path][:-1], (how, name, path)
                assert entry[-1] in (CLOSED, found[name][path][-1]), (how, name, path)
    for text in told.values():
        assert plain(text) in plain(output)

    # The emulated pool continues with what the kernel's has made of it.
    account.run([*cowfs, "check"])
    account.run([*cowfs, "mount", "more", point])
    try:
        assert account.run(["cat", point / "rootfs" / "more"]).stdout == "more\n"
    finally:
        account.run(["cowfs", "umount", point])
