"""Forks stages: a server that has imported what they need, once; `python -m stages.warm`, with its orders on standard input, a socket.

An order (`pipeline.run.warm`) is a module, its arguments, the stage's whole environment, and three files: its log, its lock, and a
pipe for two numbers. The stage leads a session of its own and dies with this process, which dies with the orchestrator.

Nothing may run here that a fork would break: no thread but the main one, no CUDA. Where something does, this process ends and stages
start cold.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import selectors
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from stages.die_with_parent import die_with

_LONGEST_ORDER = 1 << 20


def prepare() -> None:
    """Import what single-process stages import, in the state in which they would; raises `RuntimeError` if a fork would break it."""
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pyarrow brings an allocator that starts a thread, and uses another
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # else the first compilation on a machine, which finds no cache, starts threads
    import wandb.apis.public  # noqa: F401 (wandb.init needs it, and it takes 2 s to import once all the others are there)

    from stages import engine
    from stages.contract import heavy_imports
    from stages.training import process

    threads = int(os.environ["OMP_NUM_THREADS"])
    engine.prepare(threads)
    process.prepare(threads)
    with heavy_imports():
        import stages.corpus.build
        import stages.evaluate.run
        import stages.midtrain.model
        import stages.next_token.train
        import stages.pretrain.model
        import stages.rl.train
        import stages.sft.solutions  # noqa: F401
    import torch
    import tqdm
    from vllm.v1.sample.ops.topk_topp_sampler import compiled_random_sample

    tqdm.tqdm.monitor_interval = 0  # else the first progress bar, which compiling has, starts a thread
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        compiled_random_sample(torch.zeros(2, 3))  # else each engine would take 2 s to compile it at its first token

    if torch.cuda.is_available() or len(list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError("a device or a thread is in use, which would not survive a fork")


def serve(orders: socket.socket) -> None:
    """Fork a stage for each order and tell its exit code, until the orchestrator closes its end."""
    running: dict[int, tuple[int, int]] = {}  # the kernel's handle of a stage's process -> its number, and the pipe to tell
    with selectors.DefaultSelector() as events:
        events.register(orders, selectors.EVENT_READ)
        while True:
            for key, _ in events.select():
                if key.fd in running:
                    process, pipe = running.pop(key.fd)
                    events.unregister(key.fd)
                    tell(pipe, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
                    os.close(key.fd)
                    os.close(pipe)
                    continue
                order, files, _, _ = socket.recv_fds(orders, _LONGEST_ORDER, 3)
                if not order:
                    return
                log, lock, pipe = files
                server = os.getpid()
                try:
                    process = os.fork()
                except OSError:  # no memory, or too many processes: the stage starts cold
                    for file in files:
                        os.close(file)
                    continue
                if process == 0:
                    events.close()
                    for handle, (_, others) in running.items():
                        os.close(handle)
                        os.close(others)
                    become(server, json.loads(order), log, lock, pipe)
                os.close(log)
                os.close(lock)
                handle = os.pidfd_open(process)
                running[handle] = process, pipe
                events.register(handle, selectors.EVENT_READ)


def tell(pipe: int, number: int) -> None:
    """Eight bytes, which `pipeline.run.warm` reads as a number, if it still listens."""
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, number.to_bytes(8, sys.byteorder, signed=True))


def become(server: int, order: dict[str, Any], log: int, lock: int, pipe: int) -> NoReturn:
    """Be the stage's process, as if started by `launch.command`."""
    code: object = 1
    try:
        os.setsid()
        tell(pipe, os.getpid())  # from here on its group can be signalled
        os.close(pipe)
        die_with(server)
        Path("/proc/self/comm").write_text(order["name"], encoding="ascii")
        for target in (1, 2):
            os.dup2(log, target)
        os.close(log)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)  # until here the server's orders
        os.close(null)
        os.environ.clear()
        os.environ.update(order["environment"] | {"PRIORLAB_LOCK_FD": str(lock)})
        sys.argv = [order["module"], *order["arguments"]]
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    prepare()
    with socket.socket(fileno=sys.stdin.fileno()) as orders:
        orders.send(b"!")
        serve(orders)
