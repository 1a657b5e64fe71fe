"""A real Slurm on this machine, from Debian's packages: munged, slurmctld and two slurmd that stand for two nodes.

`python -m tests.pipeline.slurm_cluster` keeps one up until Ctrl-C and prints the setting that makes `priorlab` use it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
_START_SECONDS = 30

_CONF = """\
ClusterName=priorlab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
KillWait=5
MinJobAge=300
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=tests Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10
"""


def missing() -> str:
    """Why no Slurm can be started here, or nothing."""
    if os.geteuid() != 0:
        return "starting Slurm's daemons needs root"
    absent = [program for program in _PROGRAMS if _find(program) is None]
    return f"Slurm is not installed ({', '.join(absent)} not found; on Debian: apt install slurm-wlm munge)" if absent else ""


@contextmanager
def running() -> Iterator[None]:
    """Slurm's commands work in this process and its children while the context is open; all daemons end with it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="priorlab-slurm-")))
        folder.chmod(0o755)
        with ExitStack() as probes:
            sockets = [probes.enter_context(socket.socket()) for _ in range(3)]
            for probe in sockets:
                probe.bind(("127.0.0.1", 0))
            ports = [probe.getsockname()[1] for probe in sockets]
        conf = folder / "slurm.conf"
        conf.write_text(_CONF.format(host=socket.gethostname().partition(".")[0], folder=folder, ports=ports))
        (folder / "state").mkdir()
        for name in ("n1", "n2"):
            (folder / f"spool-{name}").mkdir()
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(conf)
        stack.callback(lambda: os.environ.pop("SLURM_CONF") if before is None else os.environ.update(SLURM_CONF=before))
        munge = _munge(folder)
        daemons = [munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
        for daemon in daemons:
            stack.enter_context(_daemon(daemon, folder / f"{daemon[0]}{daemon[-1]}.out".replace("/", "")))
            if daemon is munge:
                _wait(lambda: (folder / "munge" / "socket").exists(), folder)
        _wait(lambda: _idle_nodes() == 2, folder)
        yield


def _munge(folder: Path) -> list[str]:
    """munged with a key and a socket of its own, so that one of the machine's is left alone."""
    place = folder / "munge"
    place.mkdir(mode=0o755)
    key = place / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    paths = {
        "key-file": key,
        "socket": place / "socket",
        "pid-file": place / "pid",
        "log-file": place / "log",
        "seed-file": place / "seed",
    }
    return ["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in paths.items())]


@contextmanager
def _daemon(command: list[str], output: Path) -> Iterator[None]:
    program = _find(command[0])
    assert program is not None
    start = [sys.executable, "-m", "stages.die_with_parent", str(os.getpid()), program, *command[1:]]  # no daemon outlives killed tests
    with output.open("wb") as log:
        process = subprocess.Popen(start, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")


def _idle_nodes() -> int:
    done = subprocess.run(["sinfo", "-h", "-N", "-p", "tests", "-t", "idle", "-o", "%N"], capture_output=True, text=True, check=False)
    return len(done.stdout.split())


def _wait(ready: Callable[[], bool], folder: Path) -> None:
    deadline = time.time() + _START_SECONDS
    while not ready():
        if time.time() > deadline:
            logs = "\n".join(
                f"{path.name}: {path.read_text(errors='replace')[-600:]}" for path in [*folder.glob("*.out"), *folder.glob("*.log")]
            )
            pytest.skip(f"Slurm did not start on this machine within {_START_SECONDS} s: {logs}")
        time.sleep(0.2)


if __name__ == "__main__":
    if missing():
        sys.exit(missing())
    with running():
        print(f"export SLURM_CONF={os.environ['SLURM_CONF']}", flush=True)
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            pass
