"""Configs: names, overrides, axes, and errors that say what to do."""

import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.recipe import RecipeConfig
from pipeline.config.stages import KINDS, CorpusStage, MidtrainStage
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import GROUPS, load_recipe, load_sweep, parse_override
from pipeline.experiment.config_files import available, config_folders, read_config
from pipeline.experiment.graph import build_graph


def only_recipe(*overrides: str) -> RecipeConfig:
    (cell,) = load_recipe("quickstart", overrides).cells()
    return cell.recipe


@pytest.mark.parametrize("name", available("sweep"))
def test_every_shipped_sweep_plans(name: str) -> None:
    graph = build_graph(load_sweep(name).cells())
    assert graph.cells
    assert graph.stages


@pytest.mark.parametrize("name", available("recipe"))
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert list(load_recipe(name).cells())


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, name)
        for group, folder in GROUPS.items()
        for name in available(folder)
        if name != "coverage" or group == "sft.prior"  # elsewhere text has no responses
    ],
)
def test_every_shipped_group_file_fits_a_recipe(group: str, name: str) -> None:
    outer, nested, _ = group.partition(".")
    overrides = [f"{outer}=countdown"] if nested and outer != "rl" else []
    if group == "midtrain.corpus":
        overrides.append(f"corpus={name}")  # a model has one tokenizer
    overrides.append(f"{group}={name}")
    if GROUPS[group] == "prior":
        overrides.append(f"{group}.k=5")
    if group == "task" or name == "paper":
        overrides.append(f"model.max_positions={2048 if group == 'task' else 32768}")
    recipe = only_recipe(*overrides)
    assert attrgetter(group)(recipe).name == name


def test_the_slurm_file_asks_for_resources_for_every_kind_of_stage() -> None:
    """Those it leaves out would run without a GPU."""
    assert KINDS.keys() <= read_config("cluster", "slurm").keys()


def test_the_priors_are_the_papers() -> None:
    recipes = {name: only_recipe("sft=countdown", f"sft.prior={name}", "sft.prior.k=100") for name in available("prior")}
    found: dict[str, Any] = {name: one.sft.prior for name, one in recipes.items() if one.sft is not None}
    settings = {name: (p.beta, p.lambda_head, p.lambda_tail) for name, p in found.items() if p.kind == "shaped"}
    assert settings == {
        "ce": (0, 0, 0), "precision": (-0.25, 0, 0), "diversity": (0.5, 0, 0), "tail": (0, 0, -0.1), "head": (0, 0.1, 0)
    }  # fmt: skip
    assert {name: p.knobs_text for name, p in found.items() if p.kind != "shaped"} == {
        "coverage": "attempts=16", "dft": "alpha=1", "entropy": "alpha=0.1 gate=1", "focal": "gamma=2", "gem": "tau=0.7",
        "smoothing": "epsilon=0.1"
    }  # fmt: skip


def test_an_override_sets_one_value_and_keeps_its_neighbours() -> None:
    recipe = only_recipe("rl.optimizer.learning_rate=1e-4", "rl.steps=7")
    assert recipe.rl is not None
    assert (recipe.rl.optimizer.learning_rate, recipe.rl.steps, recipe.rl.samples_per_prompt) == (1e-4, 7, 8)


def test_a_new_name_keeps_the_keys_beside_the_old_one() -> None:
    prior = only_recipe("prior=tail").prior
    assert (prior.name, prior.knobs()["lambda_tail"], prior.k) == ("tail", -0.1, 5)


def test_a_group_inside_another_is_chosen_by_name_with_changes_and_as_an_axis(tmp_path: Path) -> None:
    def chosen(*overrides: str) -> Any:
        rl = only_recipe(*overrides).rl
        assert rl is not None
        return rl.exploration

    assert chosen().kind == "none"
    assert chosen("rl.exploration=diversity", "rl.exploration.lambda_diversity=0.05").lambda_diversity == 0.05
    assert chosen("rl={exploration: {use: representation, beta: 0.5}}").beta == 0.5
    path = tmp_path / "rl.yaml"
    path.write_text((config_folders()[-1] / "rl" / "countdown.yaml").read_text() + "exploration: diversity\n")
    assert (chosen(f"rl={path}").name, chosen(f"rl={path}", "rl.exploration=none").name) == ("diversity", "none")
    cells = list(load_sweep("quickstart", ["axes.rl.exploration=[none,distinct]", "axes.prior=[ce]"]).cells())
    assert [cell.id for cell in cells] == ["ce-seed0-none", "ce-seed0-distinct"]
    graph = build_graph(cells)
    assert len([node for node in graph.stages.values() if node.kind == "pretrain"]) == 1


def test_where_stages_run_is_chosen_by_name_and_not_part_of_identity() -> None:
    local = build_graph(load_recipe("quickstart").cells())
    slurm = build_graph(load_recipe("quickstart", ["cluster=slurm", "cluster.max_jobs=3"]).cells())
    assert local.stages.keys() == slurm.stages.keys()
    cluster = slurm.cells[0].cell.recipe.cluster
    assert (cluster.kind, cluster.max_jobs, cluster.resources("pretrain").gpus_per_process) == ("slurm", 3, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster.max_jobs=3"], "max_jobs is set, but no cluster is chosen; add cluster=local or cluster=slurm"),
        (["cluster=slurm", "cluster.pretrain.node=2"], "cluster.pretrain has no key 'node'; did you mean 'nodes'?"),
        (["cluster=slurm", "cluster.rl.minutes=5"], "warning_seconds is 90, more than a fifth of rl.minutes (5); raise rl"),
        (["cluster=slurm", "cluster.pretrain.nodes=2"], "cluster.pretrain.nodes is 2; pretrain.launch.processes (1) cannot be spread"),
        (["cluster=slurm", "cluster.evaluate.nodes=2"], "cluster.evaluate.nodes is 2; the one process of stage evaluate cannot be"),
    ],
)  # fmt: skip
def test_an_impossible_cluster_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(PriorlabError, match=re.escape(message)):
        only_recipe(*overrides)


def test_without_rl_a_recipe_is_pretraining_alone() -> None:
    (plan,) = build_graph(load_recipe("quickstart", ["rl=null"]).cells()).cells
    assert list(plan.chain) == ["corpus", "pretrain"]
    assert list(plan.evaluations) == ["pretrain"]


def test_midtraining_runs_between_pretraining_and_rl_with_the_first_tokenizer() -> None:
    (plan,) = build_graph(load_recipe("quickstart", ["midtrain=countdown"]).cells()).cells
    assert list(plan.chain) == ["corpus", "pretrain", "midtrain-corpus", "midtrain", "rl"]
    assert plan.chain["midtrain-corpus"].parents == {"tokenizer": plan.chain["corpus"]}
    assert plan.chain["midtrain"].parents == {"checkpoint": plan.chain["pretrain"], "corpus": plan.chain["midtrain-corpus"]}
    assert plan.chain["rl"].parents == {"checkpoint": plan.chain["midtrain"]}
    assert {after: node.parents for after, node in plan.evaluations.items()} == {
        after: {"checkpoint": plan.chain[after], "corpus": plan.chain["corpus"]} for after in ("pretrain", "midtrain", "rl")
    }
    (without,) = build_graph(load_recipe("quickstart").cells()).cells
    assert plan.chain["pretrain"].fingerprint == without.chain["pretrain"].fingerprint
    assert plan.evaluations["pretrain"].fingerprint == without.evaluations["pretrain"].fingerprint


def test_midtraining_without_its_own_text_or_prior_keeps_those_from_the_end_of_pretraining() -> None:
    changes = ["midtrain=countdown", "midtrain.corpus=null", "prior={use: diversity, schedule: [{at: 0.5, use: tail}]}"]
    (plan,) = build_graph(load_recipe("quickstart", changes).cells()).cells
    assert "midtrain-corpus" not in plan.chain
    assert plan.chain["midtrain"].parents["corpus"] is plan.chain["corpus"]
    config = plan.chain["midtrain"].config
    assert isinstance(config, MidtrainStage)
    assert (config.prior.name, config.prior.knobs()["lambda_tail"], config.prior.k, config.prior.schedule) == ("tail", -0.1, 5, ())


def test_midtraining_uses_the_first_corpus_tokenizer_and_refuses_a_different_one() -> None:
    changes = ["corpus=realtext", "midtrain=countdown"]  # the second names no tokenizer
    (plan,) = build_graph(load_recipe("quickstart", changes).cells()).cells
    first, second = (plan.chain[role].config for role in ("corpus", "midtrain-corpus"))
    assert isinstance(first, CorpusStage)
    assert isinstance(second, CorpusStage)
    assert first.corpus.tokenizer == second.corpus.tokenizer
    assert second.corpus.tokenizer.kind == "bpe"
    with pytest.raises(PriorlabError, match=r"midtrain.corpus.tokenizer differs from corpus.tokenizer; leave it out"):
        only_recipe(*changes, "midtrain.corpus.tokenizer={kind: bpe, vocab_size: 300}")


def test_a_prior_for_midtraining_only_shares_the_pretraining() -> None:
    kinds = [node.kind for node in build_graph(load_sweep("midtrain").cells()).stages.values()]
    # Two corpora and one pre-training; the rest three times: mid-training, RL, and the evaluation of each.
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"corpus": 2, "pretrain": 1, "midtrain": 3, "rl": 3, "evaluate": 1 + 6}


@pytest.mark.parametrize(
    ("evaluate_at", "steps"),
    [
        ("{count: 4}", [200, 400, 600]),
        ("{count: 5, spacing: log}", [50, 100, 200, 400]),
        ("[0.5, 0.125]", [100, 400]),
        ("{count: 20, spacing: log}", [1, 2, 3, 6, 12, 25, 50, 100, 200, 400]),  # no step twice, none before the first
        ("null", []),
    ],
)
def test_intermediate_checkpoints_are_spread_over_the_steps(evaluate_at: str, steps: list[int]) -> None:
    (plan,) = build_graph(load_recipe("quickstart", ["pretrain.steps=800", f"pretrain.evaluate_at={evaluate_at}"]).cells()).cells
    assert plan.cell.recipe.pretrain.milestones == steps
    assert list(plan.milestones) == [("pretrain", step) for step in steps]
    for node in plan.milestones.values():
        assert node.parents == plan.evaluations["pretrain"].parents
    assert len({node.fingerprint for node in plan.stages()}) == len(plan.stages())
    assert plan.chain["rl"].parents == {"checkpoint": plan.chain["pretrain"]}


def test_rl_may_use_the_positions_that_midtraining_adds_and_evaluation_may_not() -> None:
    longer = ["midtrain=countdown", "midtrain.corpus.block_size=512"]
    assert only_recipe(*longer, "rl.max_response_tokens=400").last_positions == 512
    with pytest.raises(PriorlabError, match=r"evaluate.max_response_tokens \(400\) plus .* exceed model.max_positions \(256\)"):
        only_recipe(*longer, "evaluate.max_response_tokens=400")


def test_axes_multiply_and_equal_stages_are_shared() -> None:
    sweep = load_sweep("quickstart", ["axes.prior=[ce,tail]", "axes.seed=[0,1]", "axes.rl.steps=[5,10]"])
    graph = build_graph(sweep.cells())
    assert len(graph.cells) == 8
    kinds = [node.kind for node in graph.stages.values()]
    # One corpus; a pre-training and its evaluation per prior and seed; RL and its evaluation per cell.
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"corpus": 1, "pretrain": 4, "rl": 8, "evaluate": 4 + 8}
    assert len({plan.cell.id for plan in graph.cells}) == 8


def test_parents_come_before_children() -> None:
    seen: set[str] = set()
    for fingerprint, node in build_graph(load_sweep("quickstart").cells()).stages.items():
        assert {parent.fingerprint for parent in node.parents.values()} <= seen
        seen.add(fingerprint)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prior.bta=1"], "prior has no key 'bta'; did you mean 'beta'?"),
        (["preturain.steps=1"], "recipe has no key 'preturain'; did you mean 'pretrain'?"),
        (["evaluate.temperatures=[0.5,1]"], "evaluate: temperatures has 1 twice, or it is evaluate.temperature (1), which is always"),
        (["evaluate.temperatures=[0.5,0.5]"], "evaluate: temperatures has 0.5 twice"),
        (["evaluate.temperatures=[0]"], "evaluate.temperatures.0 is 0: input should be greater than or equal to 0.01"),
        (["prior.temperature=0"], "prior.temperature is 0: input should be greater than 0"),
        (["prior.temperature=0.9", f"pretrain.adopted=sha256:{0:064}"], "prior.temperature is 0.9, but an adopted checkpoint"),
        (["rl.steps=many"], "rl.steps is 'many': input should be a valid integer"),
        (["axes.prior=[{beta: x}]"], "prior.beta is 'x': input should be a valid number"),
        (["prior.beta=-2"], "prior.beta is -2: input should be greater than or equal to -1"),
        (["axes.prior=[tail]", "prior.k=0"], "k is 0, but lambda_head=0 and lambda_tail=-0.1 reward tokens by rank"),
        (["axes.prior=[presicion]"], "there is no prior 'presicion'; did you mean 'precision'?"),
        (["axes.seed=[]"], "axes.seed of sweep 'quickstart' is empty"),
        (["axes.seed=3"], "an axis is a list, e.g. axes.seed=[3]"),
        (["axes.seed=[1,1]"], "axes.seed of sweep 'quickstart' lists 1 twice"),
        (["rl.steps"], "'rl.steps' is not an override; write key=value"),
        (["rl.steps=[1"], "is not YAML"),
        (["recipe={use: smoke, 1: 2}"], "recipe has the key 1; keys must be text"),
        (["corpus.seed=-1"], "corpus.seed is -1: input should be greater than or equal to 0"),
        (["model.head_dim=33"], "model.head_dim is 33: input should be a multiple of 2"),
        (["cluster=slurm", "cluster.options.account=[1]"], "cluster.options.account is [1]: input should be a valid string; cluster."),
        (["seed.inner=1"], "cannot set seed.inner: seed is 0, not a mapping"),
        (["pretrain.launch.micro_batch=7"], "global_batch is 16; it must be a multiple of processes x micro_batch = 1 x 7 = 7"),
        (["model.heads=5", "model.kv_heads=2"], "heads (5) must be a multiple of kv_heads (2)"),
        (["corpus.block_size=100000"], "corpus.block_size (100000) exceeds model.max_positions (256)"),
        (["pretrain.evaluate_at={}"], "pretrain.evaluate_at: count is None and shares []; give one of them, e.g. {count: 8, spac"),
        (["pretrain.evaluate_at=[0.5, 1.0]"], "pretrain.evaluate_at.shares.1 is 1.0: input should be less than 1"),
        (["model=../../secret"], "cannot name a model"),
        (["seed=5"], "seed is an axis of sweep 'quickstart', so seed=... would change nothing"),
        (["prior=tail"], "narrow the axis instead, e.g. axes.prior=[...]"),
        (["rl.temperature=.inf"], "rl.temperature is inf: input should be a finite number"),
        (["axes.seed=[2024-13-45]"], "seed is '2024-13-45': input should be a valid integer"),
        (["axes.seed=[4294967296]"], "seed is 4294967296: input should be less than 4294967296"),
        (["pretrain.dtype=bfloat16"], "dtype bfloat16 needs launch.zero_stage >= 1"),
        (["rl.max_response_tokens=1000"], "rl.max_response_tokens (1000) plus 64 prompt tokens exceed"),
        (
            ["pretrain.launch={processes: 2, micro_batch: 8, zero_stage: 2, zero: {zero_hpz_partition_size: 2}}"],
            "zero.zero_hpz_partition_size is 2, with zero_stage 2 and 2 processes; it goes with stage 3 alone",
        ),
        (["pretrain.launch.attention=flash_attention_2"], "launch.attention is flash_attention_2, which has no float32"),
        (["pretrain.launch.save_steps=30"], "save_steps is 30; it must be a multiple of log_steps (20)"),
        (["axes.prior=[{name: m, beta: 0.1}, {name: m, beta: 0.2}]"], "two cells of sweep 'quickstart' are called 'm-seed0'"),
        (["axes.prior=[" + "[" * 3000], "is not YAML"),
        (["task.numbers=[9]"], "task: numbers is [9]; each count must be between 2 and 6"),
        (["task.largest_numbr=9"], "task has no key 'largest_numbr'; did you mean 'largest_number'?"),
        (["task=arithmetic", "task.operations=[40]"], "task: operations is [40]; each count must be between 1 and 12"),
        (["task=arithmetic", "task.largest_target=9"], "task has no key 'largest_target'; did you mean 'largest_value'?"),
        (["task={use: gsm8k, train: {hubb: x}}"], "task.train has no key 'hubb'; did you mean 'hub'?"),
        (["task=gsm8k", "task.train.file=x.csv"], "task.train: file is 'x.csv', which cannot be read: No such file or directory"),
        (["task=math500", "task.evaluate.hub=null"], "task.evaluate: hub is None and file None; give exactly one of the two"),
        (["task=aime24"], "rl.max_response_tokens (16) plus 1024 prompt tokens exceed model.max_positions (256)"),
        (["task.kind=sudoku"], "task.kind is sudoku; task needs one of arithmetic, countdown, math, parity, reasoning-gym"),
        (["task={use: countdown, kind: null}"], "task.kind is None; task needs one of arithmetic, countdown, math, parity, reason"),
        (["rl.exploration=diversty"], "there is no exploration 'diversty'; did you mean 'diversity'?"),
        (["rl.exploration.kind=luck"], "rl.exploration.kind is luck; rl.exploration needs one of distinct, diversity, none, repr"),
        (["rl.exploration={use: diversity, lambda_divers: 1}"], "rl.exploration has no key 'lambda_divers'; did you mean 'lambda_"),
        (["rl.exploration=representation", "rl.exploration.ridge=0"], "rl.exploration.ridge is 0: input should be greater than 0"),
        (["task.max_prompt_tokens=250"], "lower task.max_prompt_tokens or max_response_tokens, or raise model.max_positions"),
    ],
)  # fmt: skip
def test_errors_name_bad_input_and_the_way_out(overrides: list[str], message: str) -> None:
    with pytest.raises(PriorlabError) as error:
        list(load_sweep("quickstart", overrides).cells())
    assert message in str(error.value)


def test_an_unknown_sweep_suggests_the_nearest() -> None:
    with pytest.raises(PriorlabError, match=r"no sweep 'quickstrat'; did you mean 'quickstart'\?"):
        load_sweep("quickstrat")


@pytest.mark.parametrize("text", ["[1, 2", "- a\n- b", "a: 1\na: 2"])
def test_a_broken_file_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(PriorlabError, match=r"broken\.yaml"):
        load_sweep(str(path))


def test_a_custom_sweep_may_be_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipe": {"use": "quickstart", "rl": {"steps": 3}}, "axes": {"prior": ["ce", {"beta": -0.1}]}}))
    cells = list(load_sweep(str(path)).cells())
    assert [cell.recipe.prior.knobs()["beta"] for cell in cells] == [0, -0.1]
    assert [cell.id for cell in cells] == ["ce", "beta=-0.1"]


def test_configs_of_the_current_folder_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs" / "prior").mkdir(parents=True)
    (tmp_path / "configs" / "prior" / "mild.yaml").write_text("beta: -0.05\n")
    monkeypatch.chdir(tmp_path)
    assert config_folders()[0] == tmp_path / "configs"
    assert only_recipe("prior=mild").prior.knobs()["beta"] == -0.05


def test_scientific_notation_is_a_number() -> None:
    assert parse_override("a.b=1e-4") == (["a", "b"], 1e-4)
    assert parse_override("a.b=862e886ed9aa") == (["a", "b"], "862e886ed9aa")  # starts like a number, but is not one


def test_a_changed_prior_is_not_named_like_its_base() -> None:
    assert only_recipe("prior.beta=-0.1").prior.name == "ce,beta=-0.1"
    assert only_recipe("prior={use: ce, beta: -0.1, name: mild}").prior.name == "mild"
    assert only_recipe("prior={use: precision, form: power}").prior.name == "precision[power]"
    assert only_recipe("prior={use: precision, form: product, k: 7}").prior.name == "precision[product]"
    assert only_recipe("prior={use: ce, form: power}").prior.name == "ce"  # without a beta the forms are one
    assert only_recipe("prior={use: precision, beta: -0.1, form: power}").prior.name == "precision,beta=-0.1[power]"
    assert only_recipe("prior={use: ce, temperature: 0.909}").prior.name == "ce,temperature=0.909"
    cells = list(load_sweep("quickstart", ["axes.prior=[ce, {use: ce, beta: -0.1}]"]).cells())
    assert [cell.id for cell in cells] == ["ce-seed0", "ce,beta=-0.1-seed0"]
    assert [cell.recipe.prior.name for cell in cells] == ["ce", "ce,beta=-0.1"]


def test_a_recipe_that_uses_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs" / "recipe").mkdir(parents=True)
    (tmp_path / "configs" / "recipe" / "loop.yaml").write_text("use: loop\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PriorlabError, match="recipe 'loop' uses itself"):
        load_recipe("loop")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("description=5", "description of sweep 'smoke' is 5; give text"),
        ("axes.priors=null", "axes.priors=null drops no axis of sweep 'smoke'; its axes are prior"),
        ("rl={1: 2}", "cannot set rl: 1 is not a valid key; keys must be text"),
    ],
)
def test_what_a_sweep_cannot_be_told_is_refused(override: str, message: str) -> None:
    with pytest.raises(PriorlabError, match=re.escape(message)):
        load_sweep("smoke", [override])


def test_a_sweep_needs_no_description() -> None:
    assert load_sweep("smoke", ["description="]).description == ""


def test_merge_keys_of_yaml_work(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text("recipe:\n  use: quickstart\n  rl: &rl {steps: 3}\n  evaluate: {<<: {samples: 4}, problems: 5}\naxes: {}\n")
    (cell,) = load_sweep(str(path)).cells()
    assert (cell.recipe.evaluate.samples, cell.recipe.evaluate.problems) == (4, 5)


def test_midtraining_knows_by_how_much_its_base_was_cooled() -> None:
    """Its fingerprint follows from its parent's, so the field decides nothing but the undoing."""
    sweep = load_sweep("quickstart", ["axes.prior=[{use: ce, temperature: 0.5}, ce]", "midtrain=countdown"])
    told = [plan.chain["midtrain"].config.checkpoint_temperature for plan in build_graph(sweep.cells()).cells]  # type: ignore[attr-defined]
    assert told == [0.5, 1.0]
