"""How a stage's process is started, here or inside a cluster's job: command, environment, devices; and why it ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Protocol

from packaging.version import Version

from pipeline.errors import NO_SPACE_EXIT, STOPPED_EXIT
from pipeline.experiment.graph import StageNode
from pipeline.run.surroundings import inherited
from pipeline.store.folders import StageFolder, status_of

CODE = Path(__file__).resolve().parents[2]
"""The folder that holds the packages `pipeline` and `stages`."""
PYTHON = {"PYTHONPATH": str(CODE), "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}
"""For each interpreter that runs a stage: no folder of the user's, such as one called `datasets` in the current folder, stands in for a
package, and files are UTF-8 in every locale."""
_PATIENT_TORCH = Version("2.13")
"""From this version on torchrun can be told how long its processes may take to end; 2.11 cannot, and gives them half a minute."""
SAVING_SECONDS = 60.0
"""How long a stage that is asked to end may take to save a step checkpoint, unless a cluster's config says otherwise."""


class Process(Protocol):
    """As much of `subprocess.Popen` as whoever starts a stage needs."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int, /) -> None: ...


@dataclass(frozen=True)
class Nodes:
    """The machines that the processes of a stage are spread over, as one of them sees it; `address` and `port` are of the first."""

    count: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0


def command(node: StageNode, folder: StageFolder, package: str = "stages") -> list[str]:
    """The stage's process on this machine; `package` holds a program for each kind of stage."""
    return launch_command(node.kind, folder, node.config.processes, Nodes(), package)


def launch_command(
    kind: str, folder: StageFolder, processes: int, nodes: Nodes, package: str = "stages", *, saving_seconds: float = SAVING_SECONDS
) -> list[str]:
    """Plain Python, or torchrun when the stage has several processes. Alone on a machine, torchrun picks its own free port.

    `saving_seconds` as in `process_environment`: torchrun itself would kill its processes half a minute after they were asked to end.
    """
    stage = ["-m", f"{package}.{kind}", "--spec", str(folder.spec)]
    if processes == 1:
        start = [sys.executable, *stage]
    else:
        if nodes.count == 1:
            meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
        else:
            meeting = [f"--node-rank={nodes.rank}", f"--master-addr={nodes.address}", f"--master-port={nodes.port}"]
        spread = [f"--nnodes={nodes.count}", f"--nproc-per-node={processes // nodes.count}"]
        patience = [f"--shutdown-timeout={saving_seconds + 10:.0f}"] if Version(version("torch")) >= _PATIENT_TORCH else []
        start = [sys.executable, "-m", "torch.distributed.run", *meeting, *spread, *patience, *stage]
    return [sys.executable, "-m", "stages.die_with_parent", str(os.getpid()), *start]


def environment(
    node: StageNode, lock: int, commit: str, devices: list[str] | None = None, *, share: float = 1, cores: int = 1
) -> dict[str, str]:
    """What the stage's process sees; `devices` are its GPUs, and no others, and it may use a `share` of their memory.

    Beside a GPU, `cores` are the CPU cores that are there for it: threads then change no result.
    """
    threads = max(node.config.threads, cores // node.config.processes) if devices else node.config.threads
    seen = process_environment(threads, lock, commit, devices, hub=node.config.reads_hub)
    return seen | {"PRIORLAB_DEVICE_SHARE": str(share)}


def process_environment(
    threads: int, lock: int | None, commit: str, devices: list[str] | None = None, *, hub: bool, saving_seconds: float = SAVING_SECONDS
) -> dict[str, str]:
    """`environment` without a stage node; `lock` is None except on the stage's first machine; `hub`: its data are on the hub.

    A stage that is asked to end has `saving_seconds` to do so.
    """
    seen = inherited()
    # OMP_NUM_THREADS must stand before the process starts; two threads on a busy two-core machine are ten times slower than one.
    if devices:
        seen["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    if lock is not None:
        seen["PRIORLAB_LOCK_FD"] = str(lock)
    return seen | {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        # The hub is for stages whose data lie there; all else is on disk, and asking would only cost time.
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0" if hub else "1"),
        # Some of reasoning-gym's generators follow the order of sets: the problems before and after RL must be the same.
        "PYTHONHASHSEED": "0",
        "PRIORLAB_COMMIT": commit,
        "PRIORLAB_SAVING_SECONDS": str(saving_seconds),
        "PYTHONUNBUFFERED": "1",
        **PYTHON,
    }


def start_process(command: list[str], environment: dict[str, str], log: IO[bytes], lock: int | None) -> subprocess.Popen[bytes]:
    """A stage's process: leader of a session, with its output in `log`, and with the stage's lock if it is given one."""
    return subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=[] if lock is None else [lock],
        env=environment,
    )


def exit_code(folder: StageFolder, code: int) -> int:
    """The code that a stage ended with, of the `code` its process did: torchrun ends with 1 whatever its workers end with."""
    reported = status_of(folder).get("code")
    return reported if code == 1 and isinstance(reported, int) else code


def failure(folder: StageFolder, code: int) -> str:
    """Why a stage's process ended with this code and no record, for people."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    if code == NO_SPACE_EXIT:
        return f"no space left on the disk of {folder.path}; free some and run the same command again"
    if code == STOPPED_EXIT:
        return "ended by a SIGTERM from elsewhere"
    message = status_of(folder).get("message")
    return str(message) if message else f"ended with exit code {code}" if code else "ended without writing its record"


def signal_session(process: Process, number: signal.Signals) -> None:
    """Signal a process started as the leader of a session, and all in its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def git_commit() -> str:
    """Commit of the code, with a mark if the tree differs from it."""
    git = shutil.which("git")
    if git is None or not (CODE / ".git").exists():
        return "unknown"
    try:
        head = subprocess.run([git, "rev-parse", "--short=12", "HEAD"], cwd=CODE, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run([git, "status", "--porcelain", "-uno"], cwd=CODE, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (head.stdout.strip() or "unknown") + ("-dirty" if dirty.stdout.strip() else "")
