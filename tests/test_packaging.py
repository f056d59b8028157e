"""What is shipped: the wheel and the source archive hold both packages, and the command starts in every way."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from cowfs.version import DISTRIBUTION, VERSION

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = (
    *("LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"),
    *("docs", "systemd", "cowfs", "backends"),
)


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what packaging reads, so that building leaves nothing in the checkout."""
    tree = tmp_path_factory.mktemp("packaging") / "cowfs"
    tree.mkdir()
    for name in SHIPPED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree)
    return tree


def build(tree: Path, kind: str) -> Path:
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return tree / "dist" / result.stdout.splitlines()[-1]


def python_files(tree: Path) -> set[str]:
    """Every module and marker file, by the path at which it is imported."""
    found = set()
    for root in (tree, tree / "backends"):
        for package in root.glob("cowfs*"):
            for path in (*package.rglob("*.py"), *package.rglob("py.typed")):
                found.add(str(path.relative_to(root)))
    return found


def test_wheel_holds_every_module_and_the_type_markers(source_tree: Path) -> None:
    names = set(zipfile.ZipFile(build(source_tree, "wheel")).namelist())
    expected = python_files(source_tree)
    assert {"cowfs/py.typed", "cowfs_emulated/py.typed", "cowfs/__main__.py", "cowfs/cli/__init__.py"} <= expected
    assert expected <= names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "backends/"))]


def test_wheel_registers_the_command_and_the_backend(source_tree: Path) -> None:
    archive = zipfile.ZipFile(build(source_tree, "wheel"))
    (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    text = archive.read(entry_points).decode()
    assert "cowfs = cowfs.cli:main" in text
    assert "emulated = cowfs_emulated:BACKEND" in text
    assert "[pytest11]\ncowfs = cowfs.pytest_plugin\n" in text


def test_the_distribution_has_a_name_of_its_own(source_tree: Path) -> None:
    """The package and the command are cowfs; on PyPI another project has that name."""
    wheel = build(source_tree, "wheel")
    assert wheel.name == f"cowfs_thin-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"cowfs_thin-{VERSION}.dist-info/METADATA").decode()
    assert f"\nName: {DISTRIBUTION}\n" in metadata
    assert f'Requires-Dist: {DISTRIBUTION}[fuse]; extra == "docker"' in metadata


def test_wheel_works_away_from_the_checkout(source_tree: Path, tmp_path: Path) -> None:
    """The unpacked wheel is found before the checkout and brings its own backend."""
    zipfile.ZipFile(build(source_tree, "wheel")).extractall(tmp_path)
    code = "import cowfs, cowfs.pool; print(cowfs.__file__, cowfs.pool.load_backend('emulated').name)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.split() == [str(tmp_path / "cowfs" / "__init__.py"), "emulated"]


def test_source_archive_builds_the_same_wheel(source_tree: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xzf", build(source_tree, "sdist"), "-C", tmp_path], timeout=60, check=True)
    (unpacked,) = tmp_path.iterdir()
    names = set(zipfile.ZipFile(build(unpacked, "wheel")).namelist())
    assert python_files(source_tree) <= names
    assert any(name.endswith("/LICENSE") for name in names)


@pytest.mark.parametrize("command", [["cowfs"], ["python", "-m", "cowfs"]], ids=" ".join)
def test_help_starts(command: list[str], tmp_path: Path) -> None:
    program = str(Path(sys.executable).parent / command[0])
    result = subprocess.run(
        [program, *command[1:], "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    for word in ("init", "create", "snapshot", "mount", "status", "--home"):
        assert word in result.stdout


def test_wheel_brings_the_manual_and_the_documents(source_tree: Path) -> None:
    """Where pip, and a package that is made from the wheel, put them: below share."""
    with zipfile.ZipFile(build(source_tree, "wheel")) as archive:
        shared = {name.partition(".data/data/share/")[2] for name in archive.namelist() if ".data/" in name}
        units = {name.partition(".data/data/lib/systemd/")[2] for name in archive.namelist()}
        page = archive.read(next(name for name in archive.namelist() if name.endswith("/cowfs-mount.1"))).decode()
    assert {f"man/man1/{name}.1" for name in ("cowfs", "cowfs-mount", "cowfs-layer-diff", "cowfs-help")} <= shared
    documents = {str(path.relative_to(REPOSITORY / "docs")) for path in (REPOSITORY / "docs").rglob("*.md")}
    assert {f"doc/cowfs-thin/{name}" for name in ("README.md", "CHANGELOG.md")} <= shared
    assert {f"doc/cowfs-thin/{name}" for name in documents - {"decisions/README.md"}} <= shared
    assert "\\-\\-read\\-only" in page
    assert {"system/cowfs-snapshotter.service", "system/cowfs-snapshotter.socket"} <= units
    assert "cowfs-thin/snapshotter.toml" in shared


def test_what_builds_the_wheel_is_what_the_commands_import(tmp_path: Path) -> None:
    """The manual pages are written from the commands, in an environment that has only what is required to build."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert set(project["project"]["dependencies"]) <= set(project["build-system"]["requires"])
    optional = ["pyfuse3", "trio", "h11"]
    code = f"import sys; sys.modules |= dict.fromkeys({optional}); from cowfs.cli.manual import write_pages"
    subprocess.run([sys.executable, "-c", f"{code}; write_pages(sys.argv[1])", tmp_path], check=True, timeout=60)
    assert (tmp_path / "cowfs-mount.1").exists()
