"""Identity: what enters a fingerprint, what must not, and that no default changes silently."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.cluster import ClusterConfig
from pipeline.config.prior import ShapedPrior
from pipeline.config.stages import KINDS
from pipeline.experiment.compose import load_recipe
from pipeline.experiment.fingerprint import canonical_json, drift, fingerprint
from pipeline.experiment.graph import Graph, build_graph

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def quickstart(*overrides: str) -> Graph:
    return build_graph(load_recipe("quickstart", overrides).cells())


def by_role(graph: Graph) -> dict[str, str]:
    plan = graph.cells[0]
    return {role: node.fingerprint for role, node in plan.chain.items()} | {
        f"evaluate@{role}": node.fingerprint for role, node in plan.evaluations.items()
    }


def test_golden_fingerprints_of_the_quickstart() -> None:
    """Fails when a default or a config file changes identity: then raise its kind's version, or accept new results."""
    assert {role: value[:12] for role, value in by_role(quickstart()).items()} == {
        "corpus": "c9975b39ea40",
        "pretrain": "063e7ba2f112",
        "rl": "bc4942326e6d",
        "evaluate@pretrain": "2e66dcf1efd4",
        "evaluate@rl": "e298d2223ebb",
    }


@pytest.mark.parametrize(
    "override",
    [
        "pretrain.launch={processes: 2, micro_batch: 8}", "pretrain.launch.micro_batch=8", "pretrain.launch.zero_stage=2",
        "pretrain.launch.save_steps=40", "pretrain.launch.log_steps=4", "pretrain.head_k=9", "rl.launch.micro_batch=64",
        "rl.kv_cache_gib=2", "evaluate.verify_workers=2",
        "rl.verify_workers=2", "rl.max_verify_failures=0.1", "task.max_prompt_tokens=100",
        "tracking.mode=disabled", "tracking.project=other",
        "pretrain.optimizer.decay=linear", "midtrain=null", "sft=null", "pretrain.evaluate_at=null",
        "prior.name=renamed", "task.name=renamed", "prior.k=7", "prior.form=power", "prior.temperature=1",
        "evaluate.temperatures=[]", "rl.exploration=none", "rl.exploration={kind: none, name: plain}",
        "rl.loss=dapo", "rl.advantage=group", "rl.entropy.coefficient=0", "rl.kl=0", "rl.importance.mode=none", "rl.importance.cap=2",
    ],
)  # fmt: skip
def test_execution_settings_labels_and_inert_knobs_leave_identity_alone(override: str) -> None:
    assert by_role(quickstart(override)) == by_role(quickstart())


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("evaluate.samples=8", {"evaluate@pretrain", "evaluate@rl"}),
        ("rl.steps=3", {"rl", "evaluate@rl"}),
        ("rl.verify_seconds=1", {"rl", "evaluate@rl"}),
        ("rl.exploration=diversity", {"rl", "evaluate@rl"}),
        ("rl.advantage=maxrl", {"rl", "evaluate@rl"}),
        ("rl.loss=gspo", {"rl", "evaluate@rl"}),
        ("rl.importance.mode=token_truncate", {"rl", "evaluate@rl"}),
        ("rl.sampling_budget=4", {"rl", "evaluate@rl"}),
        ("evaluate.temperatures=[0.5]", {"evaluate@pretrain", "evaluate@rl"}),
        ("evaluate.selection={}", {"evaluate@pretrain", "evaluate@rl"}),
        ("evaluate.verify_memory_mib=512", {"evaluate@pretrain", "evaluate@rl"}),
        ("prior.beta=0.1", {"pretrain", "rl", "evaluate@pretrain", "evaluate@rl"}),
        ("prior.temperature=0.9", {"pretrain", "rl", "evaluate@pretrain", "evaluate@rl"}),
        ("seed=1", {"pretrain", "rl", "evaluate@pretrain", "evaluate@rl"}),
        ("corpus.seed=1", {"corpus", "pretrain", "rl", "evaluate@pretrain", "evaluate@rl"}),
    ],
)
def test_a_change_reaches_the_stage_and_what_depends_on_it(override: str, changed: set[str]) -> None:
    before, after = by_role(quickstart()), by_role(quickstart(override))
    assert {role for role in before if before[role] != after[role]} == changed


def test_midtraining_is_identified_by_its_settings_its_prior_and_its_parents() -> None:
    def midtrained(*overrides: str) -> dict[str, str]:
        return by_role(quickstart("midtrain=countdown", *overrides))

    before = midtrained()
    for override, changed in (
        ("midtrain.rope_base=1e5", {"midtrain"}),
        ("midtrain.optimizer.decay=linear", {"midtrain"}),
        ("midtrain.prior={beta: 0.1}", {"midtrain"}),
        ("midtrain.corpus.block_size=64", {"midtrain-corpus", "midtrain"}),
        ("prior.beta=0.1", {"pretrain", "evaluate@pretrain", "midtrain"}),
        ("prior.temperature=0.9", {"pretrain", "evaluate@pretrain", "midtrain"}),
        ("midtrain.prior={temperature: 0.9}", {"midtrain"}),
    ):
        after = midtrained(override)
        differing = {role for role in before if before[role] != after[role]}
        assert differing == changed | {"evaluate@midtrain", "rl", "evaluate@rl"}, override
    # What it trains with counts, even if said twice; how it runs does not.
    assert midtrained("midtrain.prior=ce", "midtrain.launch.micro_batch=4", "midtrain.name=other") == before


def test_intermediate_checkpoints_are_results_of_pretraining_however_they_are_requested() -> None:
    asked = by_role(quickstart("pretrain.evaluate_at={count: 4}"))
    assert asked == by_role(quickstart("pretrain.evaluate_at=[0.25, 0.5, 0.75]"))
    assert asked["pretrain"] != by_role(quickstart())["pretrain"]


def test_k_and_form_count_once_they_matter() -> None:
    assert ShapedPrior(lambda_tail=-0.1, k=5).identity() != ShapedPrior(lambda_tail=-0.1, k=6).identity()
    assert ShapedPrior(beta=0.5).identity() != ShapedPrior(beta=0.5, form="power").identity()


def test_every_kind_of_stage_has_a_version_and_resources() -> None:
    for name, kind in KINDS.items():
        assert (kind.kind, kind.version >= 1) == (name, True)
        assert ClusterConfig(kind="local").resources(name)


@given(json_values)
def test_canonical_form_does_not_depend_on_key_order(value: object) -> None:
    def reversed_keys(item: object) -> object:
        if isinstance(item, dict):
            return {key: reversed_keys(item[key]) for key in reversed(item)}
        return [reversed_keys(inner) for inner in item] if isinstance(item, list) else item

    assert canonical_json(value) == canonical_json(reversed_keys(value))


@pytest.mark.parametrize("value", [{1, 2}, object(), math.nan, math.inf, {1: 2}, b"bytes"], ids=lambda value: type(value).__name__)
def test_a_value_without_stable_text_is_refused_with_its_path(value: object) -> None:
    with pytest.raises(TypeError, match=r"\$\.outer\[0\]"):
        canonical_json({"outer": [value]})


def test_integers_floats_and_booleans_differ_but_negative_zero_does_not() -> None:
    assert len({canonical_json(value) for value in (1, 1.0, True, "1")}) == 4
    assert canonical_json(-0.0) == canonical_json(0.0)


def test_kind_version_and_parents_are_part_of_identity() -> None:
    base = fingerprint("rl", 1, {"a": 1}, {"checkpoint": "x"})
    assert base != fingerprint("evaluate", 1, {"a": 1}, {"checkpoint": "x"})
    assert base != fingerprint("rl", 2, {"a": 1}, {"checkpoint": "x"})
    assert base != fingerprint("rl", 1, {"a": 1}, {"checkpoint": "y"})


def test_drift_names_every_changed_field() -> None:
    before = {"optimizer": {"learning_rate": 0.002, "clip": 1.0}, "steps": 5}
    after = {"optimizer": {"learning_rate": 0.001, "clip": 1.0}, "seed": 1}
    assert list(drift(before, after)) == ["optimizer.learning_rate: 0.002 -> 0.001", "seed: absent -> 1", "steps: 5 -> absent"]
