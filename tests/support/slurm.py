"""A Slurm of its own: Debian's daemons on this host with ports, keys and folders that nobody else has."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from waiting import wait_until

import marcod

PROGRAMS: Final = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")
NODE: Final = "CPUs=40 RealMemory=1000000 Gres=gpu:4"
"""Resources that the node claims to have, whatever this host has, so that job files run as they are."""

CONFIGURATION: Final = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=30
MinJobAge=3600
RequeueExit=75
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SchedulerParameters=batch_sched_delay=1,sched_interval=5
NodeName={host} NodeAddr=127.0.0.1 {node} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Programs of Slurm that this host does not have."""
    return [name for name in PROGRAMS if _program(name) is None]


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@dataclass
class Slurm:
    """One controller and one node. ``user`` runs them and the jobs."""

    folder: Path
    user: str
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Slurm":
        host = socket.gethostname().partition(".")[0]
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        ctld_port, slurmd_port = _free_ports(2)
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host, folder=self.folder, user=self.user, node=NODE, ctld_port=ctld_port, slurmd_port=slurmd_port
            )
        )
        munge = [f"--{what}-file={self.folder}/munge.{what}" for what in ("key", "pid", "log", "seed")]
        (self.folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/tty[0-3]\n")
        # Its folders are those of a test, which its own rules find too open.
        self._start("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *munge)
        wait_until((self.folder / "munge.socket").exists, "munge to listen")
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D")
        wait_until(
            lambda: "idle" in self._ask("sinfo", "--noheader", "--format=%T", check=False), "a node that is idle"
        )
        return self

    def __exit__(self, *_: object) -> None:
        # A job that outlives its controller waits for it for ever.
        with self._stack:
            self._ask("scancel", f"--user={self.user}")
            wait_until(lambda: not self._ask("squeue", "--noheader"), "every job to end")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def submit(self, script: Path, *options: str, **variables: str) -> int:
        """Submit a job file with more options, which count before its own. Returns the job's number."""
        given = ",".join(["ALL", *(f"{name}={value}" for name, value in variables.items())])
        said = self._ask("sbatch", "--parsable", f"--export={given}", f"--chdir={self.folder}", *options, str(script))
        return int(said.split(";")[0])

    def state(self, job: str) -> str:
        """State of a job or of one task such as ``12_3``, as COMPLETED."""
        found = re.search(r"JobState=(\w+)", self.show(job))
        return found[1] if found else ""

    def exit_code(self, job: str) -> str:
        """Exit code and signal of a job or of one task, as ``75:0``."""
        found = re.search(r"ExitCode=(\S+)", self.show(job))
        return found[1] if found else ""

    def show(self, job: str) -> str:
        return self._ask("scontrol", "show", "job", job)

    def control(self, *arguments: str) -> str:
        return self._ask("scontrol", *arguments)

    def cancel(self, job: str) -> None:
        self._ask("scancel", job)

    def log(self) -> str:
        """Logs of the daemons, and the end of what the jobs wrote."""
        jobs = sorted(self.folder.glob("marcod-*.log"))
        texts = [(path, path.read_text()[-2_000:]) for path in (*jobs, *map(self._at, ("slurmctld.log", "slurmd.log")))]
        return "\n".join(f"{path.name}:\n{text}" for path, text in texts)

    def _at(self, name: str) -> Path:
        return self.folder / name

    def _ask(self, name: str, *arguments: str, check: bool = True) -> str:
        command = [_program(name) or name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout.strip()

    def _start(self, name: str, *arguments: str) -> None:
        log = self._stack.enter_context((self.folder / f"{name}.out").open("wb"))
        process = subprocess.Popen(
            [_program(name) or name, *arguments], stdout=log, stderr=log, env=self.environment, start_new_session=True
        )
        self._stack.callback(_end, process)


def marcod_program(folder: Path) -> Path:
    """Write a program that is marcod as these tests have it."""
    path = folder / "marcod"
    root = Path(marcod.__file__).parents[1]
    path.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m marcod "$@"\n')
    path.chmod(0o755)
    return path


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> Sequence[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
