"""A SLURM of two nodes on this machine, for one test: everything lies in one folder and ends with the test."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=2
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
RebootProgram=/bin/true
KillWait=10
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """Programs of SLURM and munge that are not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Cluster:
    """The daemons, and the commands that speak to them.

    Args:
        folder: For configuration, keys, logs and state; its path must be short enough for a socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        self.environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Cluster:
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755, parents=True)
        (self.folder / "state").mkdir()
        key = munge / "key"
        key.touch(mode=0o400)
        key.chmod(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        controller, first, second = free_ports(3)
        settings = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser(), "folder": self.folder}
        ports = {"controller": controller, "first": first, "second": second}
        (self.folder / "slurm.conf").write_text(CONFIG.format(**settings, **ports))
        try:
            files = {
                "key-file": key,
                "socket": munge / "socket",
                "pid-file": munge / "pid",
                "seed-file": munge / "seed",
            }
            files["log-file"] = munge / "log"
            self._start("munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items()))
            self.wait_for((munge / "socket").exists, 30)
            self._start("slurmctld", "-D", "-c")
            for node in ("node1", "node2"):
                (self.folder / f"spool.{node}").mkdir()
                self._start("slurmd", "-D", "-N", node)
            self.wait_for(lambda: self("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split() == ["node1", "node2"], 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for job in self("squeue", "-h", "-o", "%A").split():
            self("scancel", "--full", "--signal=KILL", job)
            self("scancel", job)
        end = time.monotonic() + 30
        while time.monotonic() < end and self("squeue", "-h"):
            time.sleep(0.5)
        for daemon in reversed(self._daemons):  # the first to go are the nodes
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start(self, *words: str) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self._daemons.append(subprocess.Popen(words, env=self.environment, stdout=log, stderr=log))

    def __call__(self, *words: str, check: bool = False, cwd: Path | None = None, **environment: str) -> str:
        """Run a command of SLURM; returns what it prints."""
        variables = {**self.environment, **environment}
        done = subprocess.run(words, env=variables, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """State of a job, RUNNING for example; empty if it is unknown."""
        words = self("scontrol", "--oneliner", "show", "job", job).split()
        return next((word.split("=")[1] for word in words if word.startswith("JobState=")), "")

    def wait_for(self, what: Callable[[], Any], seconds: float) -> Any:
        """Wait until something is true, at most so long; returns it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := what():
                return found
            for daemon in self._daemons:
                assert daemon.poll() is None, (
                    f"{daemon.args} ended: {(self.folder / 'daemons.log').read_text()[-2000:]}"
                )
            time.sleep(0.3)
        raise AssertionError(f"waited {seconds:g} s in vain; {(self.folder / 'daemons.log').read_text()[-2000:]}")
