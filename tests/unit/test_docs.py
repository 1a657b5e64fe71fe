"""README and docs stay true: links point somewhere, tables and lists are what the code gives. `test_shown` runs what they show."""

import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.compare.results import COLUMNS
from pipeline.compare.settings import declared_pairs, planned_settings
from pipeline.config.algorithm import Advantage, Loss
from pipeline.config.cluster import ClusterConfig, Resources
from pipeline.config.corpus import AnySource, CorpusConfig
from pipeline.config.exploration import Exploration
from pipeline.config.prior import ShapedPrior
from pipeline.config.rl import RLConfig
from pipeline.config.training import AdamWConfig
from pipeline.experiment.compose import load_recipe, load_sweep
from pipeline.experiment.config_files import available, read_config
from pipeline.home.status import STATES, StageReport
from scripts.figures import importance as importance_figures
from scripts.figures import objective as objective_figures
from stages.objective.family import OBJECTIVES
from stages.objective.gem import Gem
from stages.objective.shaped import Shaped
from tests.unit.test_shown import PAGES, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TOOLS = ("status", "logs", "diff", "cancel", "gc", "adopt")


def test_the_two_commands_are_there_and_executable() -> None:
    for script in ("scripts/priorlab", "scripts/test"):
        assert re.search(rf"^```sh\n(?:(?!```).*\n)*?{script}\b", README, re.MULTILINE)
        assert (ROOT / script).stat().st_mode & 0o111


def test_the_drawing_has_every_kind_of_stage() -> None:
    (drawing,) = re.findall(r"```mermaid\n(.*?)```", README, re.DOTALL)
    assert {page.parent.name for page in (ROOT / "stages").glob("*/__main__.py")} <= set(re.findall(r'\["?(\w+)', drawing))


def test_the_findings_are_those_of_the_pages_that_are_held_against_the_data() -> None:
    findings = README.partition("## What we found so far")[2].partition("\n## ")[0]
    numbers = re.findall(r"[-+]?\d*\.\d+", findings)
    assert len(numbers) > 15
    linked = re.findall(r"\]\(docs/results/(\w+)\.md\)", findings)
    pages = "".join((ROOT / "docs" / "results" / f"{name}.md").read_text(encoding="utf-8") for name in ["countdown", *linked])
    assert [number for number in numbers if not re.search(rf"(?<!\d){re.escape(number)}(?!\d)", pages)] == []


def test_the_software_is_cited_by_its_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"version = {{{project['version']}}}" in README


def test_the_index_names_each_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"^\| .* \| \[(.*?)\]", index, re.MULTILINE)) == pages | {"results/README.md"}


def test_the_sweeps_that_are_built_as_examples_have_the_cells_of_their_axes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    path = tmp_path / "example.yaml"
    names = []
    for example, cells in zip(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL), (3 * 3 * 2, 2 * 3, 3 * 5), strict=True):
        path.write_text(example)
        sweep = load_sweep(str(path))
        settings = planned_settings(list(sweep.cells()))
        assert sum(len(setting.cells) for setting in settings) == cells
        assert len(declared_pairs(settings, sweep.contrasts)) == len(sweep.contrasts)
        names.append([setting.name for setting in settings])
    assert all(f"`{name}`" in page for name in names[1])


def test_the_table_of_priors_is_the_configs() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) \| (\S+) \| (\d*) ?\| .* \|$", README, re.MULTILINE)
    for name, *cells in rows:
        prior = ShapedPrior.model_validate(read_config("prior", name))
        assert [prior.beta, prior.lambda_head, prior.lambda_tail, prior.k] == [float(cell or 0) for cell in cells]
    others = re.findall(r"`(\w+)`", README.partition("Other papers' objectives")[2].partition("\n")[0])
    assert sorted([name for name, *_ in rows] + others) == available("prior")


def test_the_page_of_objectives_names_each_with_its_knobs() -> None:
    page = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`.*?) \| `(\w+)`: (.*?) \|", page.partition("Each has a value")[0], re.MULTILINE)
    assert [kind for _, kind, _ in rows] == list(OBJECTIVES)
    for names, kind, knobs in rows:
        assert set(re.findall(r"`(\w+)`", knobs)) == {field.name for field in fields(OBJECTIVES[kind])} - {"z_loss"}
        for name in re.findall(r"`(\w+)`", names):
            assert read_config("prior", name).get("kind", "shaped") == kind


@pytest.mark.parametrize("name", objective_figures.FAMILY)
@pytest.mark.parametrize("context", objective_figures.CONTEXTS)
def test_training_settles_where_the_formulas_say(name: str, context: str) -> None:
    truth, objective = objective_figures.CONTEXTS[context], objective_figures.FAMILY[name]
    by_formula = objective_figures.settled(truth, objective)
    by_training = objective_figures.stationary(truth, objective, steps=3000)
    torch.testing.assert_close(by_training, by_formula, rtol=1e-4, atol=1e-8)


def test_z_loss_leaves_the_point_of_rest_where_it_was() -> None:
    truth = objective_figures.ZIPF
    for objective in (Shaped(z_loss=0.01), Gem(z_loss=0.01)):
        at_rest = objective_figures.stationary(truth, objective, steps=3000)
        torch.testing.assert_close(at_rest, objective_figures.settled(truth, replace(objective, z_loss=0)), rtol=1e-4, atol=1e-8)


def test_the_table_of_entropies_at_rest_is_what_the_objectives_give() -> None:
    assert f"\n{objective_figures.family_table()}\n" in (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")


def test_the_table_of_sweeps_names_each() -> None:
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    table = page.partition("| `priorlab sweep` |")[2].partition("\n\n")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    papers = {name for name in available("sweep") if name.startswith("paper_")}
    assert named - {"paper_1b", "paper_20b_a1b"} == set(available("sweep")) - papers
    assert {"paper_1b", "paper_20b_a1b"} <= papers


def test_the_table_of_tasks_names_each() -> None:
    table = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").partition("| `task` |")[2].partition("\n\n")[0]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`([\w-]+)`", row)]
    assert sorted(named) == available("task")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        assert target.startswith("https://") or (page.parent / path).exists(), target
        assert not anchor or anchor in _anchors(page.parent / path), target


def _anchors(page: Path) -> list[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_the_page_on_slurm_shows_a_valid_cluster_and_names_every_key() -> None:
    page = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    cluster = ClusterConfig.model_validate(yaml.safe_load(example))
    assert (cluster.kind, cluster.resources("pretrain").options) == ("slurm", {"constraint": "h100"})
    named = set(re.findall(r"`(\w+)`", page))
    assert {*ClusterConfig.model_fields, *Resources.model_fields} - {"name", "kind"} <= named


def test_the_page_on_rl_shows_valid_settings_and_names_keys_that_exist() -> None:
    page = (ROOT / "docs" / "rl.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (cell,) = load_recipe("quickstart", [f"rl={yaml.safe_load(example)['rl']}"]).cells()
    assert cell.recipe.rl is not None
    assert cell.recipe.rl.export == "best"
    keys = re.findall(r"`(?:rl\.)?([a-z_]+)(?:\.\w+)?: [^`]+`", page)
    assert len(keys) > 8
    assert {"optimizer", "validation", "lengthen"} | set(keys) <= {*RLConfig.model_fields, *AdamWConfig.model_fields}


def test_the_page_on_rl_shows_every_advantage_and_loss_and_what_noise_does() -> None:
    page = (ROOT / "docs" / "rl.md").read_text(encoding="utf-8")
    assert f"\n{importance_figures.table()}\n" in page
    table = page.partition("| `rl.advantage` |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*)\|$", table, re.MULTILINE)
    kinds = {member.model_fields["kind"].default: member.model_fields for member in get_args(get_args(Advantage)[0])}
    assert {name: set(re.findall(r"`(\w+)` \(", keys)) for name, keys in rows} == {
        name: known.keys() - {"kind", "name"} for name, known in kinds.items()
    }
    assert all(f"`{loss}`" in page for loss in get_args(Loss))


def test_help_shows_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    for command in ("sweep", "run", "plan", "status", "report", "resume", "stage", "doctor", *TOOLS):
        assert re.search(rf"│ {command} ", shown), command


def test_the_documented_keys_of_status_are_those_it_prints() -> None:
    page = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
    keys = [key for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.MULTILINE) for key in re.findall(r"\w+", row)]
    assert keys == [field.name for field in fields(StageReport)]
    assert all(f"`{state}`" in page for state in STATES)


def test_every_tool_has_a_section() -> None:
    page = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == ["status", "plan", "diff", "logs", "cancel", "gc", "adopt"]


def test_the_stationary_entropies_of_the_docs_are_what_the_objective_gives() -> None:
    assert f"\n{objective_figures.table()}\n" in (ROOT / "docs" / "objective.md").read_text(encoding="utf-8")


def test_both_forms_settle_at_the_same_entropy_with_the_betas_of_the_docs_and_of_the_sweep() -> None:
    page = (ROOT / "docs" / "objective.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", page, re.MULTILINE)
    settled = {}
    for name, product, entropy, power, same in rows:
        assert entropy == same
        row = objective_figures.equal_entropy_row(name, float(product), float(power))
        assert row in page
        settled[name] = (float(product), float(power))
    assert settled.keys() == {"precision", "diversity"}
    priors = [cell.recipe.prior for cell in load_sweep("equal_entropy").cells()]
    assert {(prior.beta, prior.form) for prior in priors if isinstance(prior, ShapedPrior) and prior.beta} == {
        (beta, form) for betas in settled.values() for beta, form in zip(betas, ("product", "power"), strict=True)
    }
    assert "precision,beta=-0.171[power]" in {prior.name for prior in priors}


def test_the_page_on_exploration_shows_the_example_as_it_is_and_every_kind() -> None:
    page = (ROOT / "docs" / "exploration.md").read_text(encoding="utf-8")
    module, config = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert module == (ROOT / "stages" / "rl" / "exploration" / "distinct.py").read_text(encoding="utf-8")
    assert config in (ROOT / "pipeline" / "config" / "exploration.py").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*)\|$", page.split("## Add an exploration method")[0], re.MULTILINE)
    assert sorted(name for name, _ in rows) == available("exploration")
    kinds = {member.model_fields["kind"].default: member.model_fields for member in get_args(get_args(Exploration)[0])}
    for name, keys in rows:
        assert set(re.findall(r"`(\w+)` \(", keys)) == kinds[name].keys() - {"kind", "name"}


def test_the_columns_of_results_csv_are_documented_in_their_order() -> None:
    text = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    table = text.partition("## results.csv")[2].partition("## samples.parquet")[0]
    told = [name for line in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", line)]
    assert tuple(told) == COLUMNS


def test_the_page_on_the_corpus_shows_valid_configs_and_names_every_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "corpus.md").read_text(encoding="utf-8")
    for path in ("texts/a.jsonl.zst", "books/old/b.txt.gz", "tokenizers/mine/tokenizer.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{}")
    monkeypatch.chdir(tmp_path)
    for number, example in enumerate(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)):
        (tmp_path / f"{number}.yaml").write_text(example)
        (cell,) = load_recipe("quickstart", [f"corpus={tmp_path}/{number}.yaml", "model.max_positions=4096"]).cells()
        assert cell.recipe.corpus.sources
    kinds = {member.model_fields["kind"].default: member.model_fields for member in get_args(get_args(AnySource)[0])}
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*?)\|$", page.split("## Tokenizers")[0], re.MULTILINE))
    assert rows.keys() - {"kind"} == kinds.keys()
    filled_in = {"kind", "weight", "passes", "files", "python", "sha256"}
    assert all(set(re.findall(r"`(\w+)`", rows[kind])) == keys.keys() - filled_in for kind, keys in kinds.items())
    named = set(re.findall(r"`(?:corpus\.)?(\w+)`", page)) | set(re.findall(r"^(\w+):", page, re.MULTILINE))
    assert CorpusConfig.model_fields.keys() - {"name", "documents", "heldout_documents"} <= named


def test_every_path_that_the_guide_for_contributors_names_exists() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {path for path in re.findall(r"`((?:pipeline|stages|configs|tests|scripts|docs)/[\w./-]*)`", page) if "NAME" not in path}
    named = {path for path in named if not path.rstrip("/").endswith("KIND")}
    assert len(named) > 20
    assert not [path for path in named if not (ROOT / path).exists()]
