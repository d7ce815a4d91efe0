"""A real Slurm cluster on one machine, for the tests and to try the project on.

    eval "$(python tests/slurm/cluster.py up DIRECTORY)"    # start it and tell this shell of it
    sinfo
    python tests/slurm/cluster.py down DIRECTORY

Three nodes pretend to have 8 CPUs, 6000 MB and 2 GPUs each; partitions are `main`, `gpu` and
`low`, whose jobs make way for those of the others; accounting works. tests/slurm/etc/ has the
configuration, and tests/slurm/install.sh installs the packages. The cluster needs root, and no
systemd; memory is confined where there are cgroups of version 1. There can be one on a machine, as
it is linked into /etc/slurm. It listens on the loopback interface alone where Slurm has a setting
for it: slurmdbd has none.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Template
from typing import IO

import psutil

from processes import age, kill, processes_in, processes_with, wait_until

NAME = "palimpsest"
NODES = ("node1", "node2", "node3")
PLACES = ("munged", "mariadbd", "slurmdbd", "slurmctld", *NODES)  # where the daemons work
ACCOUNTING_PORT = 18001  # as in etc/slurmdbd.conf
TEMPLATES = Path(__file__).parent / "etc"
DAEMONS = {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmscriptd", "slurmd", "slurmstepd"}

# Snakemake's Slurm plugin starts its steps without SLURM_CONF, so Slurm must find us here too.
SYSTEM = Path("/etc/slurm")
LINKED = ("slurm.conf", "gres.conf", "cgroup.conf")
HOSTS = Path("/etc/hosts")
MEMORY = Path("/sys/fs/cgroup/memory")  # of cgroup v1; Slurm's v2 needs systemd
HOSTS_LINE = f"127.0.0.1 {' '.join(NODES)} # tests/slurm/cluster.py\n"


def missing() -> str | None:
    """Return what this machine lacks to run a cluster, and how to get it."""
    if os.geteuid() != 0:
        return "a Slurm cluster needs root, and what tests/slurm/install.sh installs"
    programs = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd")
    if any(shutil.which(program, path=_search_path()) is None for program in programs):
        return "no Slurm cluster without its packages: tests/slurm/install.sh installs them"
    return None


class Cluster:
    """A Slurm cluster whose daemons work in a directory, by which any process finds them again."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).resolve()
        self.environment = {"SLURM_CONF": str(self.directory / "etc" / "slurm.conf")}

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether any of its daemons is there."""
        return bool(self._daemons())

    def start(self) -> None:
        """Start the cluster afresh and wait until its nodes are idle; takes about five seconds.

        What an earlier run left behind is stopped first; a Slurm that is in use is an error.
        """
        self._make_way()
        try:
            self._write_configuration()
            self._link()
            self._start_munge()
            self._start_accounting()
            self.start_controller()
            for name in NODES:
                self._launch(name, "slurmd", "-D", "-N", name)
            for name in NODES:
                self._wait_for_node(name, {"idle"})
        except BaseException as error:
            error.add_note(self._ends_of_logs())
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the daemons and all jobs, and take back what was changed in /etc; the logs stay."""
        kill(self._daemons().union(*map(self._processes_on, NODES)))
        for name in LINKED:
            link = SYSTEM / name
            if link.is_symlink() and link.readlink() == self.directory / "etc" / name:
                link.unlink()
        hosts = HOSTS.read_text()
        if HOSTS_LINE in hosts:
            HOSTS.write_text(hosts.replace(HOSTS_LINE, ""))
        shutil.rmtree(self.directory / "mariadbd", ignore_errors=True)  # over 100 MB

    def run(self, *command: str, check: bool = True, seconds: float = 60) -> str:
        """Run a command of Slurm, such as `squeue`, and return what it prints.

        A command that fails is a RuntimeError with its message, unless `check` is off.
        """
        result = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        if check and result.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip() or result.stdout}")
        return result.stdout.strip()

    def node_state(self, name: str) -> str:
        """Return a node's state as `sinfo` has it: "idle", "mixed", "down*" (* does not answer)."""
        return self.run("sinfo", "-h", "-n", name, "-p", "main", "-o", "%T")

    def kill_node(self, name: str) -> None:
        """Lose a node: kill its slurmd and everything that runs on it, without a warning.

        Slurm notices after half a minute, or at once by
        `scontrol update nodename=<name> state=down reason=lost`.
        """
        kill(self._processes_on(name))

    def start_node(self, name: str) -> None:
        """Bring a lost node back, and wait until it takes jobs."""
        self._launch(name, "slurmd", "-D", "-N", name)
        self._wait_for_node(name, {"idle", "mixed", "allocated", "completing"})

    def kill_controller(self) -> None:
        """Lose the controller; jobs run on.

        It saves its state every few seconds and forgets what came later, even a job that runs.
        """
        kill(self._daemons("slurmctld"))

    def start_controller(self) -> None:
        """Start the controller, and wait until it answers."""
        self._launch("slurmctld", "slurmctld", "-D")
        ping = ("scontrol", "ping")
        wait_until(lambda: " UP" in self.run(*ping, check=False), 30, "slurmctld answers")

    def release_held(self) -> list[str]:
        """Let jobs go on that Slurm holds, and nodes that it drains; return the jobs.

        A controller that has forgotten a running job starts it again, and holds it when the node
        says that it runs already: on any cluster it then takes an administrator.
        """
        pending = self.run("squeue", "-h", "-t", "PENDING", "-o", "%A %r", check=False)
        held = [line.split()[0] for line in pending.splitlines() if line.endswith("held")]
        for job in held:
            self.run("scontrol", "release", job, check=False)
        states = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T", check=False)
        for node in [line.split()[0] for line in states.splitlines() if "drain" in line]:
            self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        return held

    def processes_of(self, job_id: int | str) -> list[int]:
        """Return the pids of a job's processes on all nodes, oldest first, without Slurm's own."""
        found = processes_with(SLURM_JOB_ID=str(job_id))
        return [process.pid for process in sorted(found, key=age)]

    def batch_step(self, job_id: int | str) -> int:
        """Return the pid of a job's batch script, whose parent is the slurmstepd of that step."""
        for process in self._daemons():
            with suppress(psutil.Error):
                if f"[{job_id}.batch]" in process.cmdline() and (own := process.children()):
                    return min(own, key=age).pid
        raise LookupError(f"job {job_id} has no batch step that runs")

    def _make_way(self) -> None:
        """Stop the clusters that were left behind, and refuse to replace another Slurm."""
        for name in LINKED:
            link = SYSTEM / name
            if link.exists() and not link.is_symlink():
                raise FileExistsError(f"{link} is a file: this machine has a Slurm of its own.")
        own = self.directory / "etc" / "slurm.conf"
        if self.directory.exists() and any(self.directory.iterdir()) and not _ours(own):
            raise FileExistsError(f"{self.directory} has files that are not a cluster's.")
        link = SYSTEM / "slurm.conf"
        if link.is_symlink():
            target = link.readlink()
            if link.exists() and not _ours(target):
                raise FileExistsError(f"{link} leads to {target}, which is not of our making.")
            other = Cluster(target.parent.parent)
            if other.directory != self.directory and other.running and not other._abandoned():
                raise RuntimeError(
                    f"A cluster is up in {other.directory}, and a machine can have one. To stop it:"
                    f" python tests/slurm/cluster.py down {other.directory}"
                )
            other.stop()
        self.stop()

    def _abandoned(self) -> bool:
        """Whether all that shared it are gone; one that was started by hand stays until `down`."""
        if not _users(self.directory).exists():
            return not self.directory.exists()
        with _users(self.directory).open() as users:
            return _lock_alone(users)

    def _write_configuration(self) -> None:
        host = socket.gethostname().split(".")[0]
        address = _address_of(host)
        # Told to listen on one address, slurmd takes that of the host's name, whatever it is.
        loopback = address.startswith("127.")
        values = {
            "name": NAME,
            "directory": self.directory,
            "host": host,
            "address": address if loopback else "127.0.0.1",
            "communication": "NoCtldInAddrAny,NoInAddrAny" if loopback else "NoCtldInAddrAny",
            "tasks": "task/cgroup"
            if MEMORY.is_dir()
            else "task/none",  # memory is confined, or not
        }
        shutil.rmtree(self.directory, ignore_errors=True)
        (self.directory / "etc").mkdir(parents=True)
        for template in TEMPLATES.iterdir():
            path = self.directory / "etc" / template.name
            path.write_text(Template(template.read_text()).substitute(values))
            path.chmod(0o600 if template.name == "slurmdbd.conf" else 0o644)
        for gpu in range(2):
            os.mknod(self.directory / f"gpu{gpu}", stat.S_IFCHR | 0o666, os.makedev(1, 3))

    def _link(self) -> None:
        SYSTEM.mkdir(exist_ok=True)
        for name in LINKED:
            (SYSTEM / name).unlink(missing_ok=True)
            (SYSTEM / name).symlink_to(self.directory / "etc" / name)
        # Written in place, as containers mount this file.
        HOSTS.write_text(HOSTS.read_text().removesuffix("\n") + "\n" + HOSTS_LINE)

    def _start_munge(self) -> None:
        key = self.directory / "munge.key"
        key.touch(mode=0o400)
        key.write_bytes(os.urandom(128))
        files = {"key-file": key.name, "socket": "munge.socket", "seed-file": "munge.seed"}
        options = [f"--{option}={self.directory / name}" for option, name in files.items()]
        # It finds fault with the directories that pytest makes: --force.
        self._launch("munged", "munged", "--foreground", "--force", *options, "--pid-file=pid")
        test = ("munge", "--no-input", f"--socket={self.directory}/munge.socket")
        wait_until(lambda: self.run(*test, check=False), 10, "munged answers")

    def _start_accounting(self) -> None:
        """Start MariaDB, which listens on a socket alone, and slurmdbd; name the users."""
        data = self.directory / "mariadbd"
        install = ("mariadb-install-db", "--no-defaults", "--user=root", "--skip-test-db")
        self.run(*install, f"--datadir={data}", "--auth-root-authentication-method=socket")
        options = ("--no-defaults", "--user=root", "--skip-networking", f"--datadir={data}")
        tuning = ("--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0")
        self._launch("mariadbd", "mariadbd", *options, *tuning, f"--socket={data}/socket")
        ping = ("mariadb-admin", "--no-defaults", f"--socket={data}/socket", "ping")
        wait_until(lambda: "alive" in self.run(*ping, check=False), 30, "mariadbd answers")
        self._launch("slurmdbd", "slurmdbd", "-D")
        wait_until(lambda: _listens(ACCOUNTING_PORT), 30, "slurmdbd listens")
        self.run("sacctmgr", "-i", "add", "cluster", NAME)
        self.run("sacctmgr", "-i", "add", "account", "ci")
        self.run("sacctmgr", "-i", "add", "user", "root", "account=ci", "defaultaccount=ci")

    def _wait_for_node(self, name: str, states: set[str]) -> None:
        wait_until(lambda: self.node_state(name) in states, 30, f"{name} is {' or '.join(states)}")

    def _launch(self, name: str, *command: str) -> None:
        """Start a daemon that works in a directory of its own and outlives this process."""
        place = self.directory / name
        place.mkdir(exist_ok=True)
        environment = {
            "PATH": _search_path(),
            **self.environment,
            "MYSQL_UNIX_PORT": str(self.directory / "mariadbd" / "socket"),  # for slurmdbd
        }
        with (self.directory / f"{name}.log").open("ab") as log:
            subprocess.Popen(
                command,
                cwd=place,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _daemons(self, *places: str) -> set[psutil.Process]:
        """Return the daemons that work in these places; all daemons if none is named."""
        return processes_in([self.directory / place for place in places or PLACES], DAEMONS)

    def _processes_on(self, name: str) -> set[psutil.Process]:
        """Return a node's slurmd, the slurmstepd of its steps, and all that these started."""
        found = processes_with(SLURM_CLUSTER_NAME=NAME, SLURMD_NODENAME=name)
        for daemon in self._daemons(name):
            with suppress(psutil.Error):
                found.update([daemon, *daemon.children(recursive=True)])
        return found

    def _ends_of_logs(self) -> str:
        logs = sorted(self.directory.glob("*.log"))
        ends = ("\n".join(log.read_text(errors="replace").splitlines()[-8:]) for log in logs)
        return "\n".join(f"== {log}\n{end}" for log, end in zip(logs, ends, strict=True))


@contextmanager
def shared(directory: str | Path) -> Iterator[Cluster]:
    """Use a cluster together with other processes: the first starts it, the last stops it.

    Each holds a lock while it uses the cluster. The system takes the lock from one that is killed,
    so that a cluster which all have left is known as such, and the next to start one stops it.
    """
    cluster = Cluster(directory)
    cluster.directory.parent.mkdir(parents=True, exist_ok=True)
    with _users(cluster.directory).open("w") as users:
        with _turn(cluster.directory):
            if not cluster.running:
                cluster.start()
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield cluster
        finally:
            with _turn(cluster.directory):
                if _lock_alone(users):
                    cluster.stop()


@contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """Hold what one process at a time can have, to start or to stop the cluster."""
    with directory.with_name(f"{directory.name}.turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _users(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.users")


def _lock_alone(file: IO[str]) -> bool:
    """Lock a file if no other process has it locked; return whether that is so."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _ours(configuration: Path) -> bool:
    """Whether a file is the configuration of a cluster of this script's making."""
    return configuration.is_file() and f"ClusterName={NAME}\n" in configuration.read_text()


def _search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _address_of(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def main(arguments: list[str]) -> int | str:
    """Start or stop a cluster for a person; return the exit status or an error message."""
    match arguments:
        case ["up", directory]:
            if reason := missing():
                return reason
            cluster = Cluster(directory)
            _users(cluster.directory).unlink(missing_ok=True)
            cluster.start()
            for name, value in cluster.environment.items():
                print(f"export {name}='{value}'")
        case ["down", directory]:
            if not _ours(Path(directory) / "etc" / "slurm.conf"):
                return f"no cluster is in {directory}"
            Cluster(directory).stop()
        case _:
            return "usage: python tests/slurm/cluster.py up|down DIRECTORY"
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
