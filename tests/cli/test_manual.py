"""The manual pages: one for each command, with every option, and without a complaint of groff."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from cowfs.cli import app
from cowfs.cli.manual import write_pages


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {path.name: path.read_text() for path in write_pages(tmp_path_factory.mktemp("man"))}


def plain(page: str) -> str:
    """What a page says, without roff's marks."""
    for mark, text in (("\\-", "-"), ("\\(aq", "'"), ("\\(dq", '"'), ("\\&", ""), ("\\e", "\\")):
        page = page.replace(mark, text)
    return page


def test_every_command_has_a_page_with_its_options(pages: dict[str, str]) -> None:
    context = click.Context(app.cli, info_name="cowfs", **app.cli.context_settings)
    for name in app.cli.list_commands(context):
        command = app.cli.get_command(context, name)
        assert command is not None
        text = plain(pages[f"cowfs-{name}.1"])
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.opts[-1] in text, (name, option.opts)
        assert f"cowfs-{name}(1)" in plain(pages["cowfs.1"])
    assert {"cowfs-layer-diff.1", "cowfs-pool-resize.1", "cowfs-docker-plugin.1"} <= pages.keys()
    assert "cowfs-dmstatus.1" not in pages
    assert ".SS Groups of commands" in pages["cowfs.1"]


def test_examples_keep_their_lines_and_words_their_signs(pages: dict[str, str]) -> None:
    text = plain(pages["cowfs.1"])
    (example,) = re.findall(r"^\.nf\n(.*?)\.fi$", text, re.M | re.S)
    assert "  cowfs --home H init   " in example.splitlines()[0]
    assert "EXIT STATUS" in text
    assert "2 for a request that is malformed" in text
    assert "\b" not in "".join(pages.values())


def test_groff_has_nothing_to_say(pages: dict[str, str], tmp_path: Path) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("needs groff; run: sudo apt-get install groff-base")
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
    names = sorted(pages)
    done = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-z", *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
