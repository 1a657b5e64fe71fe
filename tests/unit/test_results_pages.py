"""The results pages hold what was measured: their commands plan the cells of their data, their tables show its means."""

import csv
import re
import shlex
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from scipy import stats

from pipeline.compare.format import share, with_interval
from pipeline.compare.results import COLUMNS
from pipeline.compare.settings import planned_settings
from pipeline.experiment.compose import Cell, load_sweep
from pipeline.report.tables import headings
from scripts.figures import what_predicts

FOLDER = Path(__file__).parent.parent.parent / "docs" / "results"
BY_SEED = "| pass@1 after RL | seed 0 "
BY_TEMPERATURE = "| setting | temperature |"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.stem != "README")


def test_the_index_links_each_page() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[.*?\]\((\w+)\.md\) \|", index, re.MULTILINE) == [page.stem for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_command_plans_the_cells_that_were_measured(page: Path) -> None:
    rows = _rows(page)
    assert set(rows[0]) == set(COLUMNS)
    assert {cell.id for cell in _cells(page)} == {row["cell"] for row in rows}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_table_shows_the_means_of_the_data(page: Path) -> None:
    table = re.search(r"^\| setting \|.*?(?=\n\n)", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert table is not None
    titles, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.group().splitlines())
    keys = [title.removesuffix(" before") for title in titles if title.endswith(" before")]
    alone = "each gain by itself" in page.read_text(encoding="utf-8")  # measured before gains held jointly
    assert titles == [title.replace(", jointly", "") if alone else title for title in headings(keys)]
    assert [line[0] for line in lines] == [setting.name for setting in planned_settings(_cells(page))]

    measured = _values(page)
    for setting, line in zip(planned_settings(_cells(page)), lines, strict=True):
        for position, key in enumerate(keys):
            before, after, gain = line[3 + 3 * position : 6 + 3 * position]
            means = [mean(measured[cell.id, side, key] for cell in setting.cells) for side in ("before", "after")]
            assert [float(before), float(after)] == pytest.approx(means, abs=5.1e-4)
            assert float(gain.split()[0]) == pytest.approx(means[1] - means[0], abs=6e-4)


@pytest.mark.parametrize("page", [page for page in PAGES if BY_TEMPERATURE in page.read_text("utf-8")], ids=lambda page: page.stem)
def test_the_values_by_temperature_are_those_of_the_data(page: Path) -> None:
    titles, _, *lines = (
        BY_TEMPERATURE + page.read_text(encoding="utf-8").partition(BY_TEMPERATURE)[2].partition("\n\n")[0]
    ).splitlines()
    keys = re.findall(r"(pass@\d+) before \| after", titles)
    settings = {setting.name: setting.cells for setting in planned_settings(_cells(page))}
    assert len(lines) == 4 * len(settings)
    for line in lines:
        name, temperature, _, *values = (cell.strip() for cell in line.strip("|").split("|"))
        measured = _values(page, float(temperature))
        means = [mean(measured[cell.id, side, key] for cell in settings[name]) for key in keys for side in ("before", "after")]
        assert list(map(float, values)) == pytest.approx(means, abs=5.1e-4)


@pytest.mark.parametrize("page", [page for page in PAGES if BY_SEED in page.read_text("utf-8")], ids=lambda page: page.stem)
def test_the_levels_by_seed_are_those_of_the_data(page: Path) -> None:
    measured = _values(page)
    lines = page.read_text(encoding="utf-8").partition(BY_SEED)[2].partition("\n\n")[0].splitlines()[2:]
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    told = {name: values for name, *values in rows}
    for setting in planned_settings(_cells(page)):
        assert told.pop(setting.name) == [share(measured[cell.id, "after", "pass@1"]) for cell in setting.cells]
    assert not told


def test_the_table_of_what_predicts_is_that_of_the_data() -> None:
    assert what_predicts.table(what_predicts.read(what_predicts.SWEEPS)) in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_page_of_levels_tells_what_decides_as_the_data_do() -> None:
    """Rank correlations between seeds."""
    told = " ".join((FOLDER / "levels.md").read_text(encoding="utf-8").split())
    cells = what_predicts.read(("levels",))
    found, _ = what_predicts.correlations(what_predicts.between_seeds(cells))
    by_name = dict(zip(what_predicts.MEASUREMENTS, (f"{one:.2f}".replace("0.", ".") for one in found), strict=True))
    for shown in (
        f"lower perplexity (rank correlation {by_name['perplexity']} over",
        f"higher pass@1 ({by_name['pass@1']}) or pass@16 ({by_name['pass@16']}), or lower entropy ({by_name['entropy']})",
        f"Greedy decoding tells as much ({by_name['greedy']}), response length nothing ({by_name['response length']})",
    ):
        assert shown in told


@pytest.mark.parametrize(("sweep", "seeds"), [("levels", 20), ("longer", 12)])
def test_the_pages_tell_differences_at_equal_perplexity_as_the_data_do(sweep: str, seeds: int) -> None:
    told = " ".join((FOLDER / f"{sweep}.md").read_text(encoding="utf-8").split())
    cells = what_predicts.read((sweep,))
    perplexity = list(what_predicts.MEASUREMENTS).index("perplexity")
    explained = []
    for prior in ("precision", "diversity"):
        runs = [(cells[f"{sweep} ", prior, str(seed)], cells[f"{sweep} ", "ce", str(seed)]) for seed in range(seeds)]
        levels = [ours[0] - theirs[0] for ours, theirs in runs]
        line = stats.linregress([ours[1][perplexity] - theirs[1][perplexity] for ours, theirs in runs], levels)
        half = stats.t.ppf(0.975, len(runs) - 2) * line.intercept_stderr
        low, high = line.intercept - half, line.intercept + half
        assert f"`{prior}` ends {with_interval(line.intercept, low, high)}" in told
        explained.append(f"{line.rvalue**2:.0%}")
    assert f"perplexity explains {explained[0]} of" in told
    assert f"and {explained[1]} of those" in told


def test_what_predicts_finds_what_is_there_and_nothing_else() -> None:
    """Eight groups of the same ten seeds: one measurement is the level with noise, the others are noise, the same in all groups."""
    rng = np.random.default_rng(0)
    seeds = [str(seed) for seed in range(10)]
    others = rng.normal(size=(10, len(what_predicts.MEASUREMENTS)))
    base = rng.normal(size=10)
    cells = {}
    for setting in range(8):
        for at, seed in enumerate(seeds):
            measured = [base[at], *others[at, 1:]]
            cells["sweep", f"setting {setting}", seed] = (float(base[at] + 0.3 * rng.normal()), measured)
    correlations, p = what_predicts.correlations(what_predicts.between_seeds(cells))
    assert correlations[0] > 0.8
    assert p[0] < 0.01
    assert (p[1:] > 0.05).all()  # were the groups independent of one another, some would be small


def _rows(page: Path) -> list[dict[str, str]]:
    with (FOLDER / page.stem / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _cells(page: Path) -> list[Cell]:
    (command,) = re.findall(r"^scripts/priorlab sweep (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    name, *rest = shlex.split(command)
    return list(load_sweep(name, [word for word in rest if "=" in word]).cells())


def _values(page: Path, temperature: float = 1) -> dict[tuple[str, str, str], float]:
    """(cell, before or after RL, pass@k) -> mean over problems, sampled at a temperature."""
    return {
        (row["cell"], "after" if row["after"] == "rl" else "before", f"pass@{row['k']}"): float(row["value"])
        for row in _rows(page)
        if row["metric"] == "pass@k" and float(row["temperature"]) == temperature
    }
