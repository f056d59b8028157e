"""What all tests share: other users, seeds, and a check that a session leaves nothing behind.

Every process that a test starts inherits an environment variable with this session's mark, `RUN/PID/`, so that servers
which put themselves in the background are found too. Mounts and loop devices are found by path: all of them live below
pytest's base directory or below `ordinary_root`. Each session looks at its own at the end. When a run of several
sessions is interrupted, xdist kills them, and the process that started them cleans up.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pwd
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from cowfs.errors import MissingRequirement
from cowfs.pool import load_backend
from cowfs.testing.conformance import BEHAVIOURS
from cowfs.uml import UmlKernel, find_kernel
from tests.kit.docker_registry import docker_registry
from tests.kit.standby import Request, Standby, fork_servers

REPOSITORY = Path(__file__).resolve().parent.parent
MARK = "COWFS_TEST_SESSION"
SERVER_GUARD = "COWFS_SERVER_GUARD"  # the file that tests/server_guard writes to
BEHAVIOUR_OF = "conformance behaviour of "
GRACE_SECONDS = float(os.environ.get("COWFS_TEST_GRACE_SECONDS", "5"))  # for servers that are on their way out

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("default"), derandomize=True)
hypothesis.settings.register_profile("few", parent=hypothesis.settings.get_profile("ci"), max_examples=20)
hypothesis.settings.register_profile(
    "deep", parent=hypothesis.settings.get_profile("default"), max_examples=2000, stateful_step_count=100
)
hypothesis.settings.load_profile("default")


def profile() -> hypothesis.settings:
    """What was chosen on the command line: tests that need more than its examples take the larger number."""
    assert hypothesis.settings.default is not None
    return hypothesis.settings.default


# Debian gives ordinary users no path to mkfs, thin_check and their like, and they may well run them.
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), SYSTEM_PATH])

# A shell starts what it puts in the background with interrupts ignored, and whatever that starts would ignore them too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# --- the order of files, and their limits


GUESTS = ("uml", "docker")
GUEST_SECONDS = 3600  # of a test in a guest, whose steps have limits: so that it ends even where those fail
DURATIONS = REPOSITORY / "tests" / "durations.txt"
LEAST_SECONDS = 5


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-durations",
        action="store_true",
        help=f"write how long each file took to {DURATIONS.name}, for later runs",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that workers with a file each come to their ends at about the same time.

    Those of guests, which compute, alternate with those of processes, which wait for each other.
    """
    seconds = recorded_seconds()
    files = sorted({item.path for item in items}, key=lambda file: (-seconds.get(relative(file), 0), file))
    guests = [file for file in files if file.parent.name in GUESTS]
    others = [file for file in files if file.parent.name not in GUESTS]
    order = [file for pair in zip_longest(guests, others) for file in pair if file]
    place = {file: number for number, file in enumerate(order)}
    items.sort(key=lambda item: place[item.path])
    for item in items:
        if "uml_kernel" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(GUEST_SECONDS))


def relative(file: Path) -> str:
    return os.path.relpath(file, REPOSITORY)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is made of 250 modules and 6000 tests stays: to look for garbage among it is a quarter of the collection.

    Later too; and in a process that is forked from this one, looking copies.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def recorded_seconds() -> dict[str, int]:
    """How long files took in a run of all tests, by path; of short and of new files nothing is known."""
    rows = [line.split() for line in DURATIONS.read_text().splitlines()] if DURATIONS.exists() else []
    return {path: int(seconds) for seconds, path in rows}


def write_durations(reports: Iterable[pytest.TestReport]) -> None:
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds[report.nodeid.partition("::")[0]] += round(report.duration * 1000)
    rows = [(path, round(milliseconds / 1000)) for path, milliseconds in sorted(seconds.items())]
    DURATIONS.write_text("".join(f"{taken:4} {path}\n" for path, taken in rows if taken >= LEAST_SECONDS))


# --- seeds


def session_seed() -> int:
    return int(os.environ.get("COWFS_TEST_SEED", "1"))


def pytest_report_header() -> str:
    return f"cowfs: COWFS_TEST_SEED={session_seed()}, uid {os.getuid()}"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """A generator seeded by the session's seed and the test's name; a failure prints how to repeat it."""
    print(f"repeat with: COWFS_TEST_SEED={session_seed()} pytest '{request.node.nodeid}'")
    return random.Random(f"{session_seed()} {request.node.nodeid}")


# --- how many behaviours of the conformance suite ran


@pytest.fixture
def counted(record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """`counted(where, backend)`: this test is one behaviour on a backend; the run's last lines say how many there were.

    Args:
        where: the backend, and where it ran if not here.
    """

    def count(where: str, backend: str) -> None:
        record_property(f"{BEHAVIOUR_OF}{where}", backend)

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count what ran, in this process or in xdist's: properties come with the reports."""
    if terminalreporter.config.getoption("write_durations"):
        every = [report for reports in terminalreporter.stats.values() for report in reports]
        write_durations(report for report in every if isinstance(report, pytest.TestReport))
    ran: Counter[tuple[str, str]] = Counter()
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for key, backend in getattr(report, "user_properties", ()) if report.when == "call" else ():
            if key.startswith(BEHAVIOUR_OF):
                ran[key.removeprefix(BEHAVIOUR_OF), str(backend)] += 1
    if ran:
        terminalreporter.write_line("conformance: " + ", ".join(count_of(*key, ran[key]) for key in sorted(ran)))


def count_of(where: str, backend: str, count: int) -> str:
    declared = [one for one in BEHAVIOURS if one.why_not(load_backend(backend))]
    return f"{where} {count} behaviours ({len(declared)} of {len(BEHAVIOURS)} are not for it by declaration)"


# --- accounts


@dataclass
class Account:
    """A user who runs commands, with a home directory.

    `run` and `start` take the arguments of subprocess.run and Popen; the environment is small and the same everywhere,
    and `cowfs` on the path is the one under test.
    """

    name: str
    uid: int
    gid: int
    directory: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(
        self, arguments: Sequence[object], *, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; a failure raises with the command's output in the message.

        A command of `cowfs` that needs nothing unusual is forked from an interpreter that has loaded it, as is CODE in
        `["python", "-c", CODE, ...]`.
        """
        options.setdefault("timeout", 240)
        words = [str(argument) for argument in arguments]
        if words[0] in ("cowfs", "python") and options.keys() <= {"timeout", "input", "cwd", "env"}:
            options = self._options(options)
            request = Request(words, str(options["cwd"]), options["env"])
            result = self._standby().run(request, options.get("input", ""), options["timeout"])
        else:
            result = subprocess.run(
                words,
                check=False,
                text=True,
                stdin=None if "input" in options else subprocess.DEVNULL,
                stdout=options.pop("stdout", subprocess.PIPE),
                stderr=options.pop("stderr", subprocess.PIPE),
                **self._options(options),
            )
        if check and result.returncode != 0:
            raise AssertionError(
                f"{self.name} ran {' '.join(map(str, arguments))}: exit status {result.returncode}\n"
                f"{result.stdout or ''}{result.stderr or ''}"
            )
        return result

    def run_script(self, script: str) -> str:
        """What a script for bash prints, whose commands all have to succeed; its `cowfs` is forked as in `run`."""
        path = os.pathsep.join([self._standby().commands, self.environment["PATH"]])
        return self.run(["bash", "-euc", script], env={"PATH": path}).stdout

    def start(self, arguments: Sequence[object], **options: Any) -> subprocess.Popen[str]:
        """Start in the background; the caller ends it."""
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen([str(argument) for argument in arguments], text=True, **self._options(options))

    def mkdir(self, name: str) -> Path:
        """A new directory of this account's."""
        path = self.directory / name
        path.mkdir(mode=0o755)
        os.chown(path, self.uid, self.gid)
        return path

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        environment: Mapping[str, str] = options.pop("env", {})
        options.setdefault("cwd", self.directory)
        return options | self._identity() | {"env": {**self.environment, **environment}}

    def _identity(self) -> dict[str, Any]:
        return {} if self.uid == os.geteuid() else {"user": self.uid, "group": self.gid, "extra_groups": []}

    def _standby(self) -> Standby:
        return standby_of(self.uid, self.environment, **self._identity())


# Of plugins that the suites of users in the tests do not need: they are two thirds of the start of a pytest.
WITHOUT_PLUGINS = " ".join(
    f"-p no:{name}" for name in ("hypothesispytest", "trio", "xdist", "xdist.looponfail", "timeout", "anyio")
)
START_SERVERS = ("cowfs.fuse.background", "cowfs.testing.layers.homes", "cowfs.testing.layers.remote")
_standbys: dict[int, Standby] = {}


def standby_of(uid: int, environment: Mapping[str, str], **identity: Any) -> Standby:
    """This session's interpreter on standby for a user."""
    if uid not in _standbys:
        commands = tempfile.mkdtemp(prefix=ordinary_prefix(), dir=fast_parent())
        os.chmod(commands, 0o755)
        _standbys[uid] = Standby(environment, commands, uid, cwd="/", **identity)
    return _standbys[uid]


def make_account(name: str, uid: int, gid: int, directory: Path) -> Account:
    return Account(
        name,
        uid,
        gid,
        directory,
        {
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            "PATH": os.pathsep.join([os.path.dirname(sys.executable), SYSTEM_PATH]),
            "TMPDIR": str(directory),
            "PYTEST_ADDOPTS": WITHOUT_PLUGINS,
            MARK: os.environ[MARK],
            **{name: os.environ[name] for name in ("PYTHONPATH", SERVER_GUARD)},
        },
    )


@pytest.fixture(scope="session")
def ordinary_root() -> Iterator[Path]:
    """A directory that every user may pass through; pytest's own is closed to others."""
    path = Path(tempfile.mkdtemp(prefix=ordinary_prefix()))
    path.chmod(0o755)
    yield path
    remove_tree(path)


@pytest.fixture(scope="module")
def fast_directory() -> Iterator[Path]:
    """In memory where that can be, for pools that are flushed thousands of times."""
    path = Path(tempfile.mkdtemp(prefix=ordinary_prefix(), dir=fast_parent()))
    yield path
    remove_tree(path)


@pytest.fixture(scope="session")
def make_ordinary_account(ordinary_root: Path) -> Callable[[], Account]:
    """Makes accounts without privileges: `nobody` when the tests run as root, else the user who runs them."""
    entry = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())

    def make() -> Account:
        directory = Path(tempfile.mkdtemp(prefix="user-", dir=ordinary_root))
        os.chown(directory, entry.pw_uid, entry.pw_gid)
        return make_account(entry.pw_name, entry.pw_uid, entry.pw_gid, directory)

    account = make()
    try:
        seen = account.run([sys.executable, "-c", "import cowfs"], check=False)
    except PermissionError:
        elsewhere = "/usr/local/src/cowfs"
        pytest.skip(
            f"needs a checkout that user {account.name} can reach, as {REPOSITORY} is not; "
            f"run: git clone {REPOSITORY} {elsewhere} && make -C {elsewhere} test"
        )
    if seen.returncode != 0:
        pytest.fail(
            f"user {account.name} cannot run {sys.executable} or read {REPOSITORY}; put the checkout where every user "
            f"can read it, and let /usr/bin/python3 make .venv\n{seen.stderr}"
        )
    return make


@pytest.fixture
def ordinary_user(make_ordinary_account: Callable[[], Account]) -> Iterator[Account]:
    account = make_ordinary_account()
    yield account
    remove_tree(account.directory)


@pytest.fixture
def root_user(tmp_path: Path) -> Account:
    if os.geteuid() != 0:
        pytest.skip("needs root; run: sudo make test")
    return make_account("root", 0, 0, tmp_path)


@pytest.fixture(params=["root", "ordinary"])
def account(request: pytest.FixtureRequest) -> Account:
    """Each of the two kinds of user in turn."""
    chosen = request.getfixturevalue(f"{request.param}_user")
    assert isinstance(chosen, Account)
    return chosen


@pytest.fixture
def as_user(ordinary_user: Account) -> Any:
    """`as_user(["cowfs", ...])`: run a command as a user without privileges, in a separate directory."""
    return ordinary_user.run


@pytest.fixture(scope="session")
def debian_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`HOST:PORT` of Debian's docker-registry."""
    try:
        with docker_registry(tmp_path_factory.mktemp("registry")) as host:
            yield host
    except MissingRequirement as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def uml_kernel() -> UmlKernel:
    try:
        return find_kernel()
    except MissingRequirement as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def needs_mkfs_xfs() -> None:
    if shutil.which("mkfs.xfs", path=SYSTEM_PATH) is None:
        pytest.skip("mkfs.xfs is not installed; run: sudo apt-get install xfsprogs")


@pytest.fixture
def needs_fuse() -> None:
    """Mounting works for every user here, or the test says what to do."""
    try:
        mode = os.stat("/dev/fuse").st_mode
    except FileNotFoundError:
        pytest.skip("needs /dev/fuse; load the module: sudo modprobe fuse")
    if mode & 0o006 != 0o006:
        pytest.skip("needs /dev/fuse open to all users; run: sudo chmod 0666 /dev/fuse")
    if shutil.which("fusermount3") is None:
        pytest.skip("needs fusermount3; run: sudo apt-get install fuse3")


# --- no server touches its own mount


@pytest.fixture(scope="session", autouse=True)
def server_guard(ordinary_root: Path) -> Iterator[None]:
    """Have every server of the tests watched, see tests/server_guard; fail the session when one waits for itself."""
    log = ordinary_root / "server-guard"
    log.touch()
    log.chmod(0o666)
    os.environ[SERVER_GUARD] = str(log)
    os.environ["PYTHONPATH"] = str(REPOSITORY / "tests/server_guard")
    yield
    if seen := log.read_text():
        pytest.fail(f"servers touched their own mounts:\n{seen}", pytrace=False)


# --- nothing is left behind


@pytest.fixture(autouse=True)
def no_log_stays() -> Iterator[None]:
    """Take a command line's log handlers away that a test set up in this process: the next test sees its own alone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory, ordinary_root: Path) -> Iterator[None]:
    """Fail the session, naming them, when mounts, loop devices or processes outlive their tests; and end them."""
    fork_servers(lambda: standby_of(os.geteuid(), os.environ).line, START_SERVERS)
    yield
    while _standbys:
        standby = _standbys.popitem()[1]
        standby.close()
        remove_tree(Path(standby.commands))
    left = sweep(os.environ[MARK], [f"{tmp_path_factory.getbasetemp().resolve()}/", f"{ordinary_root}/"])
    if left:
        pytest.fail("left behind by tests:\n  " + "\n  ".join(left), pytrace=False)


@pytest.hookimpl(tryfirst=True)  # before pytest asks for its base directory
def pytest_configure(config: pytest.Config) -> None:
    if is_worker(config):
        run = current_run()
    else:
        run = os.urandom(4).hex()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    os.environ[MARK] = f"{run}/{os.getpid()}/"
    if not is_worker(config) and config.option.basetemp is None and memory_is_fit_for_all():
        os.environ["TMPDIR"] = tempfile.tempdir = fast_parent()
        config.option.basetemp = os.path.join(fast_parent(), f"{ordinary_prefix()}base")


def pytest_unconfigure(config: pytest.Config) -> None:
    if is_worker(config):
        return
    base = config._tmp_path_factory.getbasetemp().resolve()  # type: ignore[attr-defined]  # as xdist asks for it
    parents = {tempfile.gettempdir(), fast_parent()}
    left = sweep(f"{current_run()}/", [f"{base}/", *(f"{parent}/{ordinary_prefix()}" for parent in parents)])
    for parent in parents:
        for path in Path(parent).glob(f"{ordinary_prefix()}*"):
            remove_tree(path)
    if left:
        print("ended what was left behind:\n  " + "\n  ".join(left), file=sys.stderr)


def is_worker(config: pytest.Config) -> bool:
    """Whether xdist started this session for another one. Sessions that tests start inherit xdist's variables."""
    return hasattr(config, "workerinput")


def current_run() -> str:
    return os.environ[MARK].partition("/")[0]


def ordinary_prefix() -> str:
    """How the names of this run's directories begin; short, because sockets have short paths."""
    return f"cowfs-{current_run()}-"


def fast_parent() -> str:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()


def memory_is_fit_for_all() -> bool:
    """Whether all files of tests may be there: disks take most of a run's time. `--basetemp` says otherwise."""
    found = os.statvfs(fast_parent())
    if found.f_bavail * found.f_frsize < 6 << 30 or found.f_flag & os.ST_NOEXEC:
        return False
    with tempfile.NamedTemporaryFile(dir=fast_parent()) as file:
        try:
            os.setxattr(file.name, "user.x", b"")  # since Linux 6.6
        except OSError:
            return False
    return True


def sweep(mark: str, roots: Sequence[str]) -> list[str]:
    """End, and list, the processes whose mark begins so, and the mounts and loop devices whose paths do."""
    wait_until_processes_end(mark)
    left = [f"mount {path}" for path in mounts_below(roots)]
    left += [f"loop device {name} of {path}" for name, path in loop_devices_below(roots)]
    left += [f"process {pid}: {command}" for pid, command in marked_processes(mark)]
    for pid, _ in marked_processes(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for path in reversed(mounts_below(roots)):
        subprocess.run(["umount", "--lazy", path] if os.geteuid() == 0 else ["fusermount3", "-uz", path], check=False)
    for name, _ in loop_devices_below(roots):
        subprocess.run(["losetup", "--detach", name], check=False)
    return left


def mounts_below(roots: Sequence[str]) -> list[str]:
    """Mount points whose paths begin with any of these, in the order of mounting."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        fields = [line.split()[4] for line in file]
    # The kernel writes space, tab, newline and backslash as three octal digits.
    points = [re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field) for field in fields]
    return [point for point in points if point.startswith(tuple(roots))]


def loop_devices_below(roots: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            backing = entry.read_text().strip()
            if backing.startswith(tuple(roots)):
                found.append((f"/dev/{entry.parts[3]}", backing))
    return found


def marked_processes(mark: str) -> list[tuple[int, str]]:
    """Processes, besides this one, that were started with a mark that begins so, zombies aside."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            if any(variable.startswith(wanted) for variable in variables):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append((int(entry.name), command.strip()))
    return found


def wait_until_processes_end(mark: str) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    while marked_processes(mark) and time.monotonic() < deadline:
        time.sleep(0.05)


def remove_tree(path: Path) -> None:
    """Remove a directory, but nothing of what is still mounted below it."""
    if not mounts_below([f"{path}/"]):
        shutil.rmtree(path)
