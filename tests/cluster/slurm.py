"""A two-node Slurm cluster on this machine, all in one folder: it touches no Slurm that the machine may have."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

PROGRAMS = ("setpriv", "munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol", "squeue", "sinfo")
NODES = ("n1", "n2")
USER = pwd.getpwuid(os.getuid()).pw_name

CONFIGURATION = """\
ClusterName=hpdl
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=10
MinJobAge=300
FirstJobId={first_job}
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_ports} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP OverSubscribe=FORCE:4
"""


def missing_programs() -> list[str]:
    """Return those of Slurm's programs that are not installed."""
    return [name for name in PROGRAMS if _find(name) is None]


class SlurmCluster:
    """Two nodes of two cores, `n1` and `n2`, both played by this machine.

    Used as a context manager: both nodes are idle when it is entered; no process of it is left when it is left.

    Raises
    ------
    RuntimeError
        A daemon ended, or the nodes were not idle within a minute; the message holds the daemons' logs.
    """

    def __init__(self) -> None:
        # Not under a folder of pytest's: munged wants a socket that everybody can reach, by a short path.
        self.folder = Path(tempfile.mkdtemp(prefix="hpdl-slurm-"))
        self.daemons: dict[str, subprocess.Popen] = {}
        # Neither an allocation nor a launcher that the tests themselves run under concerns the jobs.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "SBATCH", "SRUN", "PMI", "HYDRA", "MPI_", "PYTEST"))
        }
        bin_folder = os.path.dirname(sys.executable)
        path = os.pathsep.join([bin_folder, os.environ.get("PATH", os.defpath)])
        self.environment = {
            **inherited,
            "PATH": path,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
        }

    def __enter__(self) -> SlurmCluster:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--user", USER)
        self._wait_until(lambda: not self.run("squeue", "--noheader").stdout, "jobs do not end")
        self._stop()

    def run(
        self, *command: str | Path, timeout: float = 120, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of the cluster would, from the root of the repository; return what it printed.

        Parameters
        ----------
        *command : str or Path
            The program and its arguments.
        timeout : float
            Seconds after which `subprocess.TimeoutExpired` is raised.
        environment : mapping, optional
            Variables on top of the cluster's own.
        """
        return subprocess.run(
            [str(part) for part in command],
            env={**self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def submit(self, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> str:
        """Call `sbatch` and return the number of the job."""
        result = self.run("sbatch", "--parsable", *arguments, environment=environment)
        if result.returncode != 0:
            raise RuntimeError(f"sbatch: {result.stderr}")
        return result.stdout.strip()

    def state(self, job: str) -> str:
        """Return the state of a job in Slurm's word: PENDING, RUNNING, COMPLETED, FAILED, ..."""
        lines = self.run("scontrol", "--oneliner", "show", "job", job).stdout
        return lines.partition("JobState=")[2].split()[0]

    def wait(self, job: str, timeout: float = 180) -> str:
        """Wait until a job has ended for good and return its last state."""
        deadline = time.monotonic() + timeout
        while (state := self.state(job)) in ("CONFIGURING", "PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"job {job} is {state} after {timeout} s")
            time.sleep(0.2)
        return state

    def logs(self) -> str:
        """Return the last lines that each daemon printed."""
        tails = (f"--- {file.name}\n" + "".join(_last_lines(file)) for file in sorted(self.folder.glob("*.log")))
        return "".join(tails)

    def _start(self) -> None:
        self._write_files()
        munge_socket = self.folder / "munge.socket"
        files = [f"--{kind}-file={self.folder}/munge.{kind}" for kind in ("key", "log", "pid", "seed")]
        self._launch("munged", "munged", "--foreground", f"--socket={munge_socket}", *files)
        self._wait_until(munge_socket.exists, "munged opens no socket")
        self._launch("slurmctld", "slurmctld", "-D", "-c")
        for node in NODES:
            self._launch(f"slurmd-{node}", "slurmd", "-D", "-N", node)
        self._wait_until(self._is_idle, "the nodes are not idle")

    def _write_files(self) -> None:
        # munged wants its socket where everybody may look.
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        controller_port, *node_ports = _free_ports(1 + len(NODES))
        configuration = CONFIGURATION.format(
            folder=self.folder,
            host=socket.gethostname().partition(".")[0],
            user=USER,
            controller_port=controller_port,
            nodes=",".join(NODES),
            # MPICH names its shared memory after the job: what a killed job of another cluster left must not be met.
            first_job=1 + secrets.randbelow(60_000_000),
            node_ports=",".join(map(str, node_ports)),
        )
        (self.folder / "slurm.conf").write_text(configuration)

    def _launch(self, name: str, program: str, *arguments: str) -> None:
        with open(self.folder / f"{name}.log", "w") as log:
            # A daemon ends with the tests even if these are killed, and Ctrl-C in their terminal leaves it to `_stop`.
            command = ["setpriv", "--pdeathsig=TERM", _find(program) or program, *arguments]
            daemon = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.daemons[name] = daemon

    def _is_idle(self) -> bool:
        states = self.run("sinfo", "--noheader", "--Node", "--format=%T").stdout.split()
        return states == ["idle"] * len(NODES)

    def _wait_until(self, condition: Callable[[], bool], complaint: str, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            ended = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                reason = f"{', '.join(ended)} ended" if ended else f"{complaint} after {timeout} s"
                raise RuntimeError(f"{reason}\n{self.logs()}")
            time.sleep(0.1)

    def _stop(self) -> None:
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder)


def _find(program: str) -> str | None:
    """Return the path of a program; daemons live where a plain user's PATH may not look."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))


def _free_ports(count: int) -> list[int]:
    """Return `count` ports that nobody listens on now."""
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in sockets]


def _last_lines(file: Path, count: int = 40) -> deque[str]:
    with open(file, errors="replace") as lines:
        return deque(lines, maxlen=count)
