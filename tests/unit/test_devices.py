"""GPUs of this machine: which stage has which, how much of them, and what its engine is told. None of it needs one."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.cluster import ClusterConfig
from pipeline.config.engine import CUDA_GRAPHS, Engine
from pipeline.config.launch import Launch
from pipeline.costs import stages as costs
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe
from pipeline.experiment.graph import StageNode, build_graph
from pipeline.run import devices
from pipeline.run.devices import Devices, visible_devices
from pipeline.run.launch import Nodes, environment, launch_command, process_environment
from pipeline.run.sweeps import default_jobs
from pipeline.store.folders import StageFolder
from stages import device
from stages.engine import gpu_arguments
from stages.guard import Guard
from stages.objective import fused
from stages.training.process import deepspeed_config, whole_models

MIB = 1 << 20


def rl(*overrides: str) -> StageNode:
    (plan,) = build_graph(load_recipe("quickstart", list(overrides)).cells()).cells
    return plan.chain["rl"]


def test_stages_fill_the_emptiest_gpu_first_and_no_gpu_twice() -> None:
    found = Devices(["0", "1"], stages_per_gpu=2)
    assert (found.places, found.free()) == (4, ["0", "1"])
    for expected in (["0", "1"], ["1", "0"], ["0", "1"], ["1"]):
        assert found.free() == expected  # two processes of one stage would get two different ones
        found.take(expected[:1])
    assert found.free() == []
    found.give_back(["1"])
    assert found.free() == ["1"]


@pytest.mark.parametrize(("visible", "per_gpu", "jobs"), [("0,1", 1, 2), ("0", 4, 4), ("GPU-a1,GPU-b2", 3, 6), ("", 4, None)])
def test_as_many_stages_run_at_once_as_fit_on_the_gpus(
    visible: str, per_gpu: int, jobs: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    cluster = ClusterConfig(kind="local", stages_per_gpu=per_gpu)
    assert default_jobs(cluster) == (jobs or len(os.sched_getaffinity(0)))


def test_gpus_are_counted_by_nvidia_smi_where_the_driver_has_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_DRIVER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_devices() == []
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho '  MIG 1g.10gb'\necho 'GPU 1: A (UUID: GPU-2)'\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_devices() == ["0", "1"]


def test_a_stage_beside_others_on_a_gpu_is_told_its_share_and_its_cores() -> None:
    alone, shared = environment(rl(), 0, "test", ["3"], cores=16), environment(rl(), 0, "test", ["3"], share=0.25, cores=4)
    assert (shared["CUDA_VISIBLE_DEVICES"], shared["PRIORLAB_DEVICE_SHARE"], shared["OMP_NUM_THREADS"]) == ("3", "0.25", "4")
    assert (alone["PRIORLAB_DEVICE_SHARE"], alone["OMP_NUM_THREADS"]) == ("1", "16")
    two = rl("rl.launch.processes=2", "rl.launch.micro_batch=8")
    assert environment(two, 0, "test", ["3", "4"], cores=16)["OMP_NUM_THREADS"] == "8"
    assert environment(rl(), 0, "test", cores=16)["OMP_NUM_THREADS"] == "1"  # on a CPU, threads change sums


def test_slurm_shares_gpus_in_its_own_way() -> None:
    with pytest.raises(ValueError, match=r"stages_per_gpu is 4, which goes with cluster=local"):
        ClusterConfig(kind="slurm", stages_per_gpu=4)


def test_small_models_run_eagerly_and_large_ones_capture_few_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    assert gpu_arguments(Engine(), 100 * MIB) == {"enforce_eager": True}
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert gpu_arguments(Engine(), 2000 * MIB) == {"enforce_eager": False, "cudagraph_capture_sizes": list(CUDA_GRAPHS)}


def test_what_the_engine_s_settings_say_is_what_vllm_is_told() -> None:
    chosen = Engine(eager=False, cuda_graphs=(1, 8), attention="FLASH_ATTN", flashinfer_sampler=True, prefix_caching=False)
    assert gpu_arguments(chosen, MIB) == {
        "enforce_eager": False, "cudagraph_capture_sizes": [1, 8], "attention_backend": "FLASH_ATTN", "enable_prefix_caching": False,
    }  # fmt: skip
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "1"
    with pytest.raises(ValueError, match=r"cuda_graphs is \[8, 1\]; the sizes must rise"):
        Engine(cuda_graphs=(8, 1))


def test_an_engine_on_a_shared_gpu_is_told_its_cache_and_does_not_measure_it() -> None:
    """Its neighbours start and end meanwhile."""
    assert gpu_arguments(Engine(), 100 * MIB, 1100 * MIB)["kv_cache_memory_bytes"] == 500 * MIB
    with pytest.raises(PriorlabError, match=r"may use 1\.0 GiB of the GPU .* weights alone take 2\.0; lower cluster\.stages_per_gpu"):
        gpu_arguments(Engine(), 2048 * MIB, 1024 * MIB)
    with pytest.raises(PriorlabError, match=r"rl\.engine\.sleep is true and cluster\.stages_per_gpu is 2"):
        list(load_recipe("smoke", ["rl.engine.sleep=true", "cluster=local", "cluster.stages_per_gpu=2"]).cells())


def test_the_engine_s_settings_change_no_fingerprint() -> None:
    chosen = ["rl.engine.eager=true", "evaluate.engine.attention=FLASH_ATTN", "evaluate.engine.cuda_graphs=[1]"]
    plain, other = (build_graph(load_recipe("quickstart", changes).cells()).stages for changes in ([], chosen))
    assert plain.keys() == other.keys()


@pytest.mark.parametrize(
    ("driver", "hidden", "refused"),
    [(True, None, True), (True, "0", True), (True, "", False), (True, "-1", False), (False, None, False)],
)
def test_a_torch_for_gpus_does_not_leave_a_gpu_for_the_cpu_unasked(
    driver: bool, hidden: str | None, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(device, "_DRIVER", tmp_path if driver else tmp_path / "none")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    device.has_gpu.cache_clear()
    try:
        if refused:
            with pytest.raises(PriorlabError, match=r"built for CUDA 13\.0 but cannot use the GPU; `priorlab doctor` says why"):
                device.has_gpu()
        else:
            assert not device.has_gpu()
    finally:
        device.has_gpu.cache_clear()


_PRODUCT = """
import sys, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

if sys.argv[1] == "prepared":
    from stages import engine
    engine.prepare(1)

@triton.jit
def product(a, b, c):
    rows, inner = tl.arange(0, 32)[:, None], tl.arange(0, 32)[None, :]
    tl.store(c + rows * 32 + inner, tl.dot(tl.load(a + rows * 32 + inner), tl.load(b + rows * 32 + inner)))

for target in (80, 90):
    built = triton.compile(ASTSource(product, {"a": "*fp32", "b": "*fp32", "c": "*fp32"}, {}), target=GPUTarget("cuda", target, 32))
    print("tf32" in built.asm["ptx"])
"""


@pytest.mark.parametrize(("mode", "in_tf32"), [("plain", "True"), ("prepared", "False")])
def test_float32_products_of_vllm_s_triton_attention_are_exact(mode: str, in_tf32: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    script = tmp_path / "product.py"
    script.write_text(_PRODUCT)
    root = Path(__file__).parents[2]
    seen = {name: value for name, value in os.environ.items() if name != "TRITON_F32_DEFAULT"} | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, str(script), mode], env=seen, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [in_tf32] * 2, done.stderr[-2000:]


def test_several_processes_have_as_long_to_save_as_their_stage() -> None:
    """torchrun itself would kill its processes half a minute after they were asked to end."""
    launched = launch_command("pretrain", StageFolder(Path("there")), 2, Nodes(), saving_seconds=90)
    assert "--shutdown-timeout=100" in launched
    assert process_environment(1, None, "test", hub=False, saving_seconds=90)["PRIORLAB_SAVING_SECONDS"] == "90"


def test_a_guard_waits_as_long_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIORLAB_SAVING_SECONDS", "90")
    assert Guard()._saving_seconds == 90


def test_models_that_are_not_trained_are_loaded_whole_under_zero_3() -> None:
    integration = pytest.importorskip("transformers.integrations.deepspeed")
    config = integration.HfDeepSpeedConfig(deepspeed_config(Launch(zero_stage=3), "float32") | {"train_micro_batch_size_per_gpu": 1})
    try:
        assert integration.is_deepspeed_zero3_enabled()
        with whole_models(config):
            assert not integration.is_deepspeed_zero3_enabled()
        assert integration.is_deepspeed_zero3_enabled()
    finally:
        integration.unset_hf_deepspeed_config()


def test_the_plan_knows_the_chunks_of_the_loss_on_a_gpu() -> None:
    assert (fused._CHUNK_BYTES["cuda"], fused._MIN_CHUNK_ROWS["cuda"]) == (costs._CHUNK_BYTES, costs._MIN_CHUNK_ROWS)


def test_the_plan_knows_the_tiles_in_which_trl_computes_log_probs() -> None:
    kernel, trainer = (importlib.import_module(name) for name in ("trl.kernels.chunked_logprob", "trl.trainer.utils"))
    assert (kernel.TOKEN_CHUNK_SIZE, trainer._CHUNKED_LOGPROB_CHUNK_SIZE) == costs._TILE
