"""Machines on a slow network, played by network namespaces of this one; making them takes root.

``python -m tests.cluster.hosts -- hpdl bench allreduce`` runs a program on four of them, a rank on each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.mpirun import MPIRUN

PROGRAMS = ("ip", "tc", "unshare", "hostname")

_NETWORK = "10.77.0"

_ENTER = """\
#!/bin/sh
# In place of ssh: options, an address, a command.
while [ "${{1#-}}" != "$1" ]; do shift; done
name={prefix}-${{1##*.}}; shift
exec ip netns exec "$name" unshare --uts sh -c "hostname $name; exec $*"
"""


def obstacle() -> str | None:
    """Return why this machine cannot play several, or None."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"no {', '.join(missing)} (Debian: apt-get install iproute2 util-linux hostname)"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    probe = subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True, text=True, check=False)
    return f"network namespaces cannot be made here: {probe.stderr.strip()}" if probe.returncode else None


class Hosts:
    """Some machines with a link each into one switch.

    A context manager: the namespaces are there while it is entered, and nothing else of this machine's network changes.

    Parameters
    ----------
    count : int
    rate : str
        Of each machine's link in either direction, as ``tc`` takes it.
    """

    def __init__(self, count: int = 4, rate: str = "1gbit") -> None:
        self.count, self.rate = count, rate
        self._prefix = f"hpdl{os.getpid()}"
        self._folder = Path(tempfile.mkdtemp(prefix="hpdl-hosts-"))
        self._enter = self._folder / "enter"

    def __enter__(self) -> Hosts:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def command(self, program: Sequence[str], ranks_per_host: int = 1) -> list[str]:
        """Return the command line that starts a program on each machine."""
        if MPIRUN is None:
            raise RuntimeError("no mpirun beside Python, and MPIRUN names none")
        hosts = ",".join(f"{_NETWORK}.{number}:{ranks_per_host}" for number in range(1, self.count + 1))
        return [
            *("ip", "netns", "exec", self._name("switch"), MPIRUN, "-launcher", "ssh"),
            *("-launcher-exec", str(self._enter), "-iface", "switch", "-hosts", hosts),
            *("-n", str(self.count * ranks_per_host), "-ppn", str(ranks_per_host)),
            # UCX would find that the machines share memory.
            *("-genv", "UCX_TLS", "tcp,self" if ranks_per_host == 1 else "tcp,self,sm"),
            *("-genv", "UCX_NET_DEVICES", "wire", "-genv", "GLOO_SOCKET_IFNAME", "wire"),
            *program,
        ]

    def run(
        self,
        *program: str,
        ranks_per_host: int = 1,
        timeout: float = 150,
        environment: Mapping[str, str] | None = None,
        capture: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on each machine, from the root of the repository."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PMI_", "SLURM_"))}
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
        return subprocess.run(
            self.command(program, ranks_per_host),
            env=inherited | {"PATH": path} | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=capture,
            text=True,
            timeout=timeout,
            check=False,
        )

    def _name(self, of: object) -> str:
        return f"{self._prefix}-{of}"

    def _make(self) -> None:
        self._enter.write_text(_ENTER.format(prefix=self._prefix))
        self._enter.chmod(stat.S_IRWXU)
        switch = self._name("switch")
        _call("ip", "netns", "add", switch)
        inside = ("ip", "-n", switch, "link")
        _call(*inside, "set", "lo", "up")
        _call(*inside, "add", "switch", "type", "bridge")
        _call("ip", "-n", switch, "address", "add", f"{_NETWORK}.254/24", "dev", "switch")
        _call(*inside, "set", "switch", "up")
        for number in range(1, self.count + 1):
            name, port = self._name(number), f"port{number}"
            _call("ip", "netns", "add", name)
            _call("ip", "-n", name, "link", "add", "wire", "type", "veth", "peer", "name", port, "netns", switch)
            _call("ip", "-n", name, "address", "add", f"{_NETWORK}.{number}/24", "dev", "wire")
            _call(*inside, "set", port, "master", "switch", "up")
            for device in ("lo", "wire"):
                _call("ip", "-n", name, "link", "set", device, "up")
            limit = ("rate", self.rate, "burst", "256kb", "latency", "50ms")
            _call("tc", "-n", name, "qdisc", "add", "dev", "wire", "root", "tbf", *limit)

    def _remove(self) -> None:
        for of in (*range(1, self.count + 1), "switch"):
            subprocess.run(["ip", "netns", "delete", self._name(of)], capture_output=True, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def main() -> int:
    """Run a program on machines; return its exit status."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("-n", "--hosts", type=int, default=4)
    parser.add_argument("--ranks-per-host", type=int, default=1)
    parser.add_argument("--rate", default="1gbit", help="of each machine's link, as tc takes it (%(default)s)")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    if reason := obstacle():
        parser.error(reason)
    with Hosts(options.hosts, options.rate) as hosts:
        done = hosts.run(*options.program, ranks_per_host=options.ranks_per_host, timeout=3600, capture=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
