"""What `marcod install-systemd` writes is what systemd takes, agrees with the code's own times, and is tight.

Where systemd's own programs are installed they judge the files as well; a host without them still checks the rest.
"""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from click.testing import CliRunner
from lab import Site
from waiting import wait_until

from marcod import cli as commands
from marcod import settings
from marcod.cli import run
from marcod.errors import ConfigError, MarcodError
from marcod.service import supervisor, systemd_units
from marcod.settings import ROLES, loading
from marcod.settings.environment import child_environment
from marcod.settings.loading import redacted_url
from marcod.training import trainer

PAGE = "marcod-web.service"
SERVICES = ("marcod.service", "marcod-watch.service", "marcod-score@.service", "marcod-trainer.service", PAGE)
SPLIT = SERVICES[1:]
OF_THE_PAGE = frozenset(
    {
        ("ReadOnlyPaths", "-/var/lib/marcod/models -/var/lib/marcod/training"),
        ("RuntimeDirectory", "marcod-web"),
        ("RuntimeDirectoryMode", "0755"),
    }
)
"""Keys that the page has in addition: it writes less, and has a place for its socket."""
OWN = frozenset(
    {"Description", "After", "Wants", "Conflicts", "ExecStart", "Environment", "MemoryHigh", "MemoryMax", "TasksMax"}
    | {"CPUWeight", "IOWeight", "Nice", "IOSchedulingClass", "IOSchedulingPriority", "OOMScoreAdjust"}
    | {"DevicePolicy", "DeviceAllow", "PrivateDevices", "MemoryDenyWriteExecute"}
)
"""What differs from unit to unit; everything else must be the same in all."""

EXPOSURE = 2.0
"""Below this all stay by `systemd-analyze security`: 0 is best, 9.6 is a unit that says nothing. systemd 252 gives
1.4 to marcod-watch and 1.6 to the others; newer ones look at more."""

A_PROGRAM = Path("/bin/sh")
"""Stands for marcod where systemd looks whether a unit's program is there."""


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefix")
    systemd_units.install(folder, A_PROGRAM)
    return folder


def _unit(name: str) -> list[tuple[str, str]]:
    """The keys and values of a unit file as it is shipped, in order."""
    lines = (systemd_units.folder() / name).read_text().splitlines()
    told = [line for line in lines if line and not line.startswith(("#", "["))]
    return [(key, value) for key, _, value in (line.partition("=") for line in told)]


def _only(name: str, key: str) -> str:
    [value] = [value for known, value in _unit(name) if known == key]
    return value


def _seconds(span: str) -> float:
    found = re.fullmatch(r"(\d+)(min|s|)", span)
    assert found is not None, span
    return int(found[1]) * (60.0 if found[2] == "min" else 1.0)


def _arguments(name: str) -> list[str]:
    program, *rest = _only(name, "ExecStart").split()
    assert program == systemd_units.PROGRAM
    return rest


def _roles(name: str) -> tuple[str, ...]:
    """The roles of a unit's command line, taken apart by the command line itself."""
    before, after = (_arguments(name)[:2], _arguments(name)[3:])
    with commands.cli.make_context("marcod", list(before)) as group:
        assert group.params["config_path"] == Path("/", systemd_units.CONFIGURATION)
    with run.run.make_context("run", list(after), parent=group) as context:
        roles: tuple[str, ...] = context.params["roles"]
    return roles


def test_every_role_is_somebodys_and_one_unit_has_all_but_the_page() -> None:
    assert (*_roles("marcod.service"), "web") == ROLES
    assert _roles(PAGE) == ("web",)
    assert sorted(role for name in SPLIT for role in _roles(name)) == sorted(ROLES)


@pytest.mark.parametrize("name", SERVICES)
def test_the_times_of_a_unit_agree_with_those_of_the_code(name: str) -> None:
    chosen = settings.Settings().daemon
    assert _seconds(_only(name, "TimeoutStopSec")) > chosen.stop_s + 15
    assert chosen.stop_s > trainer.STOP_S
    assert _seconds(_only(name, "TimeoutStartSec")) > chosen.batch_limit_s
    assert _seconds(_only(name, "WatchdogSec")) >= 10 * supervisor.TICK_S
    assert _only(name, "StartLimitIntervalSec") == "0"
    assert int(_only(name, "RestartPreventExitStatus")) == ConfigError.exit_code
    assert MarcodError.exit_code != ConfigError.exit_code


@pytest.mark.parametrize("name", SPLIT)
def test_units_differ_only_where_they_must(name: str) -> None:
    def shared(unit: str) -> list[tuple[str, str]]:
        return [(key, value) for key, value in _unit(unit) if key not in OWN]

    more = OF_THE_PAGE if name == PAGE else frozenset()
    assert more <= set(shared(name))
    assert [one for one in shared(name) if one not in more] == shared("marcod.service")
    assert ("ProtectSystem", "strict") in shared(name)
    assert ("NoNewPrivileges", "yes") in shared(name)
    assert ("CapabilityBoundingSet", "") in shared(name)


def test_only_who_loads_no_tensorflow_is_kept_from_writing_code_and_who_needs_no_card_from_devices() -> None:
    for name in SERVICES:
        keys = dict(_unit(name))
        light = not {"score", "trainer"} & set(_roles(name))
        assert (keys.get("MemoryDenyWriteExecute") == "yes") is (light and name != PAGE)
        assert (keys.get("PrivateDevices") == "yes") is light
        assert (keys.get("DeviceAllow") == "char-nvidia* rw") is not light


def test_every_file_says_what_it_is_for() -> None:
    for file in systemd_units.folder().iterdir():
        assert file.name in {"STORE__URL"} or file.read_text().startswith("# "), file.name


def test_systemd_takes_the_units(prefix: Path) -> None:
    folder = prefix / systemd_units.UNITS
    names = {file.name for file in folder.iterdir()}
    assert names == {*SERVICES, "marcod.target"}
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    done = subprocess.run(
        [analyze, "verify", *(str(folder / name.replace("@.", "@0.")) for name in sorted(names))],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in done.stderr.splitlines() if "marcod" in line] == []
    assert done.returncode == 0


@pytest.mark.parametrize("name", SERVICES)
def test_a_unit_is_hardly_exposed(name: str, prefix: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    told = subprocess.run(
        [analyze, "security", "--no-pager", "--offline=true", str(prefix / systemd_units.UNITS / name)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", told)
    assert found is not None, told
    assert float(found[1]) < EXPOSURE, told


def test_the_user_and_the_folders_are_made_as_the_units_need_them(tmp_path: Path) -> None:
    systemd_units.install(tmp_path, A_PROGRAM)
    users, folders = (tmp_path / systemd_units.PLACES[name] for name in ("marcod.sysusers", "marcod.tmpfiles"))
    assert [line for line in users.read_text().splitlines() if line.startswith("u marcod - ")]
    assert "d /etc/marcod/credentials 0700 root root -" in folders.read_text().splitlines()
    sysusers, tmpfiles = shutil.which("systemd-sysusers"), shutil.which("systemd-tmpfiles")
    if sysusers is None or tmpfiles is None:
        return
    as_root = os.geteuid() == 0
    rehearsal = [] if as_root else ["--dry-run"]
    subprocess.run([sysusers, f"--root={tmp_path}", *rehearsal, str(users)], check=True, capture_output=True)
    made = subprocess.run([tmpfiles, "--create", f"--root={tmp_path}", str(folders)], check=False, capture_output=True)
    # 65 is a line that cannot be read; who is not root cannot give folders away.
    assert made.returncode == 0 if as_root else made.returncode != 65, made.stderr
    if as_root:
        assert re.search(r"^marcod:.*:/var/lib/marcod:/\S*nologin$", (tmp_path / "etc/passwd").read_text(), re.M)
        modes = {place: stat.S_IMODE((tmp_path / place).stat().st_mode) for place in _MODES}
        assert modes == _MODES


_MODES = {
    "var/lib/marcod": 0o750,
    "etc/marcod": 0o755,
    "etc/marcod/credentials": 0o700,
    systemd_units.CONFIGURATION: 0o640,
}


def test_a_second_run_changes_nothing_and_never_the_configuration(tmp_path: Path) -> None:
    first = systemd_units.install(tmp_path, A_PROGRAM)
    assert {file.state for file in first} == {systemd_units.FileState.NEW}
    assert {file.path for file in first} == {path for path in tmp_path.rglob("*") if path.is_file()}
    own = tmp_path / systemd_units.CONFIGURATION
    own.write_text("# ours\n")
    before = {file.path: file.path.stat().st_ino for file in first}
    second = systemd_units.install(tmp_path, A_PROGRAM)
    assert {file.state for file in second if file.path != own} == {systemd_units.FileState.SAME}
    assert before == {file.path: file.path.stat().st_ino for file in second}
    assert own.read_text() == "# ours\n"


def test_another_program_and_another_user_are_written_everywhere(tmp_path: Path) -> None:
    systemd_units.install(tmp_path, Path("/usr/lib/marcod-2/bin/marcod"), "imaging")
    for name in SERVICES:
        text = (tmp_path / systemd_units.UNITS / name).read_text()
        assert "\nExecStart=/usr/lib/marcod-2/bin/marcod --config /etc/marcod/marcod.toml run" in text
        assert "\nUser=imaging\nGroup=imaging\n" in text
        assert systemd_units.PROGRAM not in text
    assert '\nu imaging - "' in (tmp_path / systemd_units.PLACES["marcod.sysusers"]).read_text()
    folders = (tmp_path / systemd_units.PLACES["marcod.tmpfiles"]).read_text()
    assert "\nd /var/lib/marcod 0750 imaging imaging -\n" in folders
    assert "\nz /etc/marcod/marcod.toml 0640 root imaging -\n" in folders


@pytest.mark.parametrize(
    ("program", "user", "reason"),
    [
        ("/home/ada/venv/bin/marcod", "marcod", "services do not see; install marcod elsewhere"),
        ("/tmp/venv/bin/marcod", "marcod", "is below /tmp"),
        ("/opt/my programs/marcod", "marcod", "must be an absolute path of letters"),
        ("bin/marcod", "marcod", "must be an absolute path"),
        ("/opt/100%/marcod", "marcod", "must be an absolute path"),
        ("/bin/sh", "Ada Lovelace", "is no name of a user"),
    ],
)
def test_what_cannot_be_in_a_unit_is_refused_before_anything_is_written(
    program: str, user: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        systemd_units.install(tmp_path, Path(program), user)
    assert list(tmp_path.iterdir()) == []


def test_on_the_host_itself_the_program_must_be_there() -> None:
    with pytest.raises(ConfigError, match="is no program; name the installed marcod with --exec"):
        systemd_units.install(Path("/"), Path("/opt/not-there/marcod"), dry_run=True)


def test_without_the_right_to_write_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("in the way")
    with pytest.raises(MarcodError, match=r"cannot be written by this user; run it as root, or name another --prefix"):
        systemd_units.install(tmp_path, A_PROGRAM)
    assert [path.name for path in tmp_path.iterdir()] == ["etc"]


def test_the_command_rehearses_writes_and_says_what_is_next(tmp_path: Path) -> None:
    given = ["install-systemd", "--prefix", str(tmp_path), "--exec", str(A_PROGRAM)]
    rehearsed = CliRunner().invoke(commands.cli, [*given, "--dry-run", "--json"])
    told = json.loads(rehearsed.stdout)
    assert list(tmp_path.iterdir()) == []
    assert told["next"][-1] == "systemctl enable --now marcod.service"
    assert {file["state"] for file in told["files"]} == {"new"}
    written = CliRunner().invoke(commands.cli, given)
    assert written.exit_code == 0
    assert f"{len(told['files'])} of {len(told['files'])} files written" in written.stdout
    assert {file["path"] for file in told["files"]} == {str(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert "0 of" in CliRunner().invoke(commands.cli, given).stdout


class Manager:
    """What systemd is to a service that it started: the socket on which it listens."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)

    def has_heard(self, word: str) -> bool:
        """Whether this was said by now."""
        try:
            while True:
                self.heard += self._socket.recv(4096).decode().splitlines()
        except BlockingIOError:
            return word in self.heard

    def close(self) -> None:
        self._socket.close()


@contextmanager
def _started(
    site: Site, name: str, credentials: Path, state: Path
) -> Iterator[tuple[Manager, subprocess.Popen[bytes]]]:
    """The command of a unit in the surroundings that systemd makes for it."""
    manager = Manager(site.folder)
    roles = _arguments(name)[2:]
    surroundings = child_environment(
        NOTIFY_SOCKET=manager.address,
        WATCHDOG_USEC=str(int(_seconds(_only(name, "WatchdogSec")) * 1e6)),
        STATE_DIRECTORY=str(state),
        CREDENTIALS_DIRECTORY=str(credentials),
        HOME=str(state),
        PYTHONFAULTHANDLER="1",
    )
    with (site.folder / "marcod.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "marcod", "--config", str(site.config), *roles],
            stdout=log, stderr=log, env=surroundings, cwd="/", umask=0o027,
        )  # fmt: skip
        try:
            yield manager, process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            manager.close()


@pytest.mark.slow
def test_a_unit_runs_as_systemd_starts_it_with_its_configuration_and_its_credential(tmp_path: Path) -> None:
    state, credentials, root = (tmp_path / name for name in ("state", "credentials", "imager"))
    for folder in (state, credentials, root):
        folder.mkdir()
    site = Site(tmp_path, f"sqlite:///{state / 'named-in-the-credential.sqlite'}")
    (credentials / "MARCOD_STORE__URL").write_text(site.url + "\n")
    example = (systemd_units.folder() / "marcod.toml").read_text()
    site.config.write_text(example + f"\n[sources.minstrel]\nroot = {str(root)!r}\nlayout = 'rigaku'\n")
    with _started(site, "marcod-watch.service", credentials, state) as (manager, process):
        wait_until(lambda: manager.has_heard("READY=1"), "READY=1" + site.log)
        wait_until(lambda: manager.has_heard("WATCHDOG=1"), "WATCHDOG=1")
        assert site.count("worker") == 1
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: manager.has_heard("STOPPING=1"), "STOPPING=1")
        assert process.wait(60) == 0
    assert manager.heard.index("READY=1") < manager.heard.index("STOPPING=1")
    assert site.count("worker") == 0
    assert stat.S_IMODE((state / "named-in-the-credential.sqlite").stat().st_mode) & 0o007 == 0


@pytest.mark.slow
def test_the_page_runs_as_systemd_starts_it_and_leaves_its_address_free(tmp_path: Path) -> None:
    state, credentials = (tmp_path / name for name in ("state", "credentials"))
    for folder in (state, credentials):
        folder.mkdir()
    site = Site(tmp_path, f"sqlite:///{state / 'marcod.sqlite'}")
    (credentials / "MARCOD_STORE__URL").write_text(site.url + "\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        site.config.write_text(f"web.port = {port}\n")
        with _started(site, PAGE, credentials, state) as (_, process):
            assert process.wait(60) == ConfigError.exit_code
        assert f"the page cannot listen on http://127.0.0.1:{port}" in site.log
    (tmp_path / "notify").unlink()
    with _started(site, PAGE, credentials, state) as (manager, process):
        wait_until(lambda: manager.has_heard("READY=1"), "READY=1" + site.log)
        with urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert "No plate has arrived yet" in answer.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with socket.create_server(("127.0.0.1", port)):
        assert '"stopped"' in site.log


def test_the_example_of_a_credential_is_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "MARCOD_STORE__URL").write_bytes((systemd_units.folder() / "STORE__URL").read_bytes())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    loaded = loading.load(systemd_units.folder() / "marcod.toml")
    assert redacted_url(loaded) == "postgresql://marcod_daemon:***@db.example.org/marcod"
