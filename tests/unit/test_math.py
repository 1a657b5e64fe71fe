"""Math: datasets in, prompts out, and answers judged as a mathematician would."""

from __future__ import annotations

import csv
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.config.tasks import MathSource, MathTask
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe
from pipeline.experiment.config_files import available
from stages.tasks import Problem, build_task
from stages.tasks.answers import judge
from stages.tasks.protocol import split_of

ROWS = [
    {"problem": f"What is {i} times\n\n{i + 1}?", "answer": str(i * (i + 1)), "solution": f"It is $\\boxed{{{i * (i + 1)}}}$."}
    for i in range(200)
]


def jsonl(folder: Path, rows: list[dict[str, Any]], name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """In the format that the file's name ends in."""
    if path.suffix == ".jsonl":
        jsonl(path.parent, rows, path.name)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def task(file: str, **source: Any) -> MathTask:
    return MathTask(train=MathSource(file=file, **source))


@pytest.mark.parametrize(
    ("reference", "response"),
    [
        ("18", "So the answer is \\boxed{18}."),
        ("18", "#### 18"),
        ("18", "The answer is $18$"),
        ("18", "\\boxed{17} was wrong; \\boxed{18}"),
        ("\\frac{1}{2}", "\\boxed{0.5}"),
        ("27.0", "\\boxed{27}"),
        ("1,000", "\\boxed{1000}"),
        ("$2\\sqrt{3}$", "\\boxed{\\sqrt{12}}"),
        ("x^2+1", "\\boxed{1+x^2}"),
        ("(3, \\frac{\\pi}{2})", "\\boxed{(3,\\pi/2)}"),
        ("\\{1,2\\}", "\\boxed{\\{2,1\\}}"),
        ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}"),
    ],
)
def test_equal_answers_score_however_they_are_written(reference: str, response: str) -> None:
    assert judge(reference, response).correct


@pytest.mark.parametrize(
    "response",
    [
        "", " ", "\\boxed{}", "\\boxed{19}", "\\boxed{18} or \\boxed{17}", "\\boxed{18", "\\boxed{17, 18}", "\\boxed{0 or 18}",
        "\\boxed{x}",
        "\\boxed{[0,100]}", "\\boxed{\\infty}", "\\boxed{nan}", "\\boxed{1,..,18}", "eighteen", "the answer is 17, 18 or 19",
        "１８", "١٨",
        "\u202e81", "\U0001d7d9\U0001d7e0", "\ud800", "\x00" * 1000, "\\boxed{\ud800}", "\\boxed{18.001}", "\\boxed{" * 5000,
        "\\boxed{" + "{" * 3000 + "18" + "}" * 3001, "\\boxed{" + "(" * 2000 + "18" + ")" * 2000 + "}", "(" * 500_000,
        "\\boxed{" + "\\frac{1}{" * 300 + "2" + "}" * 301, "$" + "\\sqrt{" * 500 + "2" + "}" * 500 + "$", "$" * 1_000_000,
        "1" * 1_000_000, "\\boxed{" + "1" * 1_000_000 + "}", "word " * 200_000, "\\boxed{18" + " " * 1_000_000 + "}",
        "__import__('os')",
    ],
    ids=lambda text: ascii(text[:20]),
)  # fmt: skip
def test_no_other_text_scores_or_counts_as_a_failure_of_the_verifier(response: str) -> None:
    assert not judge("18", response).correct


def test_equal_answers_vote_together() -> None:
    assert judge("1/2", "\\boxed{\\frac{1}{2}}").answer == judge("1/2", "\\boxed{0.5}").answer
    assert judge("1/2", "no idea").answer is None


NOTHING: list[Any] = ["$$", "\\boxed{}", "NaN", "nan", ".", float("nan")]


@pytest.mark.parametrize(
    ("end", "answer"),
    [
        *((end, answer) for end in ("jsonl", "parquet", "csv") for answer in NOTHING),
        ("jsonl", float("inf")), ("jsonl", ["1", float("nan")]),
    ],
)  # fmt: skip
def test_a_row_without_an_answer_to_compare_is_named_when_the_task_is_read(end: str, answer: Any, tmp_path: Path) -> None:
    good = 1.0 if isinstance(answer, float) else "1"  # a column of a table has one type
    save(tmp_path / f"data.{end}", [{"problem": "?", "answer": good}, {"problem": "!", "answer": answer}])
    with pytest.raises(PriorlabError, match=r"row 2 of .*task\.evaluate\.answer"):
        build_task(MathTask(evaluate=MathSource(file=str(tmp_path / f"data.{end}")))).problems("evaluate", 1, seed=0)


@pytest.mark.parametrize("end", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-07, "10^{-7}"), (1.5e16, "15000000000000000"), (2.5e-5, "\\frac{1}{40000}"), (1e22, "10^{22}"),
        (-3e-10, "-3\\times10^{-10}"), (0.1, "\\frac{1}{10}"), (3.0, "3"), (1234567890123456789, "1234567890123456789"),
    ],
)  # fmt: skip
def test_a_number_in_a_column_is_the_number_that_it_is(value: float, text: str, end: str, tmp_path: Path) -> None:
    save(tmp_path / f"data.{end}", [{"problem": "?", "answer": value}])
    (problem,) = build_task(MathTask(evaluate=MathSource(file=str(tmp_path / f"data.{end}")))).problems("evaluate", 1, seed=0)
    assert judge(problem.data["answer"], f"\\boxed{{{text}}}").correct
    assert not judge(problem.data["answer"], f"\\boxed{{{text}+1}}").correct


def test_single_precision_and_decimals_of_a_table_keep_their_digits(tmp_path: Path) -> None:
    table = pa.table(
        {"problem": ["?"], "answer": pa.array([123456.79], pa.float32()), "exact": pa.array([Decimal("1E-7")], pa.decimal128(9, 8))}
    )
    pq.write_table(table, tmp_path / "data.parquet")
    for column, answer in (("answer", "123456.79"), ("exact", "10^{-7}")):
        config = MathTask(evaluate=MathSource(file=str(tmp_path / "data.parquet"), answer=column))
        (problem,) = build_task(config).problems("evaluate", 1, seed=0)
        assert judge(problem.data["answer"], f"\\boxed{{{answer}}}").correct


def test_jsonl_parquet_and_csv_give_the_same_problems(tmp_path: Path) -> None:
    for end in ("jsonl", "parquet", "csv"):
        save(tmp_path / f"data.{end}", ROWS)
    found = [build_task(task(str(tmp_path / f"data.{end}"))).problems("rl", 50, seed=0) for end in ("jsonl", "parquet", "csv")]
    assert found[0] == found[1] == found[2]
    assert len({problem.id for problem in found[0]}) == 50


def test_columns_may_lie_deep_and_answers_inside_text(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "Why?"}], "reward": {"truth": ["$2$", "$3$"]}, "work": "because\n#### 1,080 "}
    file = jsonl(tmp_path, [row])
    for columns, answer in (
        ({"answer": "reward.truth"}, "$2$, $3$"),
        ({"answer": "reward.truth.1"}, "$3$"),
        ({"answer": "work", "answer_pattern": r"####\s*(\S.*)$"}, "1,080"),
    ):
        config = MathTask(evaluate=MathSource.model_validate({"file": file, "problem": "prompt.0.content", **columns}))
        assert build_task(config).problems("evaluate", 1, seed=0)[0].data == {"answer": answer}


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"question": "?"}, {}, r"row 1 of .*data\.jsonl has no column 'problem' \(task\.evaluate\.problem\); it has question"),
        ({"problem": "?", "answer": None}, {}, r"row 1 of .* has None where task\.evaluate\.answer points"),
        (
            {"problem": "?", "answer": "x"},
            {"answer_pattern": "#(.)"},
            r"row 1 of .* is 'x', which does not match task\.evaluate",
        ),
        (
            {"problem": "?", "answer": "1"},
            {"solution": "work"},
            r"no column 'work' \(task\.evaluate\.solution\); it has problem, answer",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named_with_the_key(
    row: dict[str, Any], columns: dict[str, str], message: str, tmp_path: Path
) -> None:
    config = MathTask(evaluate=MathSource.model_validate({"file": jsonl(tmp_path, [row]), **columns}))
    with pytest.raises(PriorlabError, match=message):
        build_task(config).problems("evaluate", 1, seed=0)


BROKEN: dict[str, tuple[bytes, str]] = {
    "cut": (b'{"problem": ', "is not JSON: Expecting value"),
    "long integer": (b'{"problem": "!", "answer": "1", "id": ' + b"9" * 5000 + b"}", "is not JSON: Exceeds the limit"),
    "nested too deep": (b"[" * 100_000, "is not JSON: maximum recursion depth"),
    "not UTF-8": (b'{"problem": "caf\xe9"}', "is not UTF-8: 'utf-8' codec can't decode byte 0xe9"),
    "no object": (b"[1]", r"is '\[1\]'\.\.\.; each line must be a JSON object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_line_is_named(case: str, tmp_path: Path) -> None:
    line, message = BROKEN[case]
    (tmp_path / "data.jsonl").write_bytes(b'{"problem": "?", "answer": "1"}\n' + line + b"\n")
    with pytest.raises(PriorlabError, match=rf"line 2 of .*data\.jsonl \(task\.train\.file\) {message}"):
        build_task(task(str(tmp_path / "data.jsonl"))).problems("rl", 1, seed=0)


def test_half_a_surrogate_pair_is_named_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"problem": "\\ud83d", "answer": "1"}\n')
    with pytest.raises(PriorlabError, match=r"row 1 of .*data\.jsonl has half of a surrogate pair where task\.train\.problem points"):
        build_task(task(str(tmp_path / "data.jsonl"))).problems("rl", 1, seed=0)


def test_a_long_cell_is_read_and_a_long_row_names_its_columns(tmp_path: Path) -> None:
    save(tmp_path / "data.csv", [{"problem": "x" * 200_000, "answer": "1"}])
    (problem,) = build_task(MathTask(evaluate=MathSource(file=str(tmp_path / "data.csv")))).problems("evaluate", 1, seed=0)
    assert "x" * 200_000 in problem.prompt
    (tmp_path / "data.csv").write_text("question,answer\n1,2,3\n")
    with pytest.raises(
        PriorlabError, match=r"row 1 of .* has no column 'problem' .* it has question, answer, \(cells beyond the header\)"
    ):
        build_task(MathTask(evaluate=MathSource(file=str(tmp_path / "data.csv")))).problems("evaluate", 1, seed=0)


@pytest.mark.parametrize("case", ["no parquet", "cut", "no text", "a date too far"])
def test_a_table_that_cannot_be_read_is_named(case: str, tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    bytes_ = pa.array([b"\xe9"]).view(pa.string()) if case == "no text" else pa.array(["1"])
    far = pa.array([2**62], pa.timestamp("ms")) if case == "a date too far" else pa.array([0])
    pq.write_table(pa.table({"problem": ["?"], "answer": bytes_, "made": far}), path)
    if case in ("no parquet", "cut"):
        path.write_bytes(b"PAR1" if case == "no parquet" else path.read_bytes()[:-30])
    with pytest.raises(PriorlabError, match=r"data\.parquet \(task\.evaluate\.file\)"):
        build_task(MathTask(evaluate=MathSource(file=str(path)))).problems("evaluate", 1, seed=0)


def test_splits_never_share_a_problem_and_training_never_has_an_evaluation_problem(tmp_path: Path) -> None:
    train = MathSource(file=jsonl(tmp_path, ROWS), solution="solution")
    respaced = [{"problem": row["problem"].replace("\n\n", " "), "answer": row["answer"]} for row in ROWS[:40]]
    evaluate = MathSource(file=jsonl(tmp_path, [*respaced, *respaced], "test.jsonl"))
    math = build_task(MathTask(train=train, evaluate=evaluate))
    assert len(math.problems("evaluate", 40, seed=0)) == 40
    with pytest.raises(PriorlabError, match=r"has 40 distinct problems in its 'evaluate' split, but 41.*set evaluate\.problems=40"):
        math.problems("evaluate", 41, seed=0)
    rl = math.problems("rl", 20, seed=0)
    assert not {p.id for p in rl} & {p.id for p in math.problems("evaluate", 40, seed=0)}
    assert {split_of(p.id) for p in rl} <= {"rl", "evaluate"}
    documents = {"".join(document) for split in ("corpus", "heldout") for document in math.documents(split, 500, seed=0)}
    for text in [p.prompt for p in rl] + [row["problem"] for row in ROWS[:40]]:
        assert not any(document.startswith(text) for document in documents)


def test_without_solutions_all_training_rows_but_the_evaluation_share_are_for_rl(tmp_path: Path) -> None:
    math = build_task(task(jsonl(tmp_path, ROWS)))
    with pytest.raises(PriorlabError) as error:
        math.problems("rl", 1000, seed=0)
    available = int(str(error.value).split("has ")[1].split()[0])
    assert 150 < available < 200
    assert {split_of(p.id) for p in math.problems("evaluate", 200 - available, seed=0)} == {"evaluate"}


def test_every_document_is_a_prompt_with_a_solution_that_verifies(tmp_path: Path) -> None:
    math = build_task(task(jsonl(tmp_path, ROWS), solution="solution"))
    answers = {row["solution"]: row["answer"] for row in ROWS}
    for document in math.documents("corpus", 50, seed=1):
        assert document.prompt.endswith("\n\n")
        assert math.verify(Problem("", "", {"answer": answers[document.response]}), document.response).correct
        assert set("".join(document)) <= set(math.alphabet)


def test_a_corpus_without_solutions_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(PriorlabError, match=r"no worked solutions.*task\.train\.solution"):
        build_task(task(jsonl(tmp_path, ROWS))).documents("corpus", 1, seed=0)


def test_rl_on_a_task_for_evaluation_only_is_refused_with_the_way_out(tmp_path: Path) -> None:
    math = build_task(MathTask(evaluate=MathSource(file=jsonl(tmp_path, ROWS))))
    with pytest.raises(PriorlabError, match=r"for evaluation only and has no 'rl' split; give it a source to train on: task\.train="):
        math.problems("rl", 1, seed=0)


def test_more_problems_begin_with_fewer_so_validation_changes_no_training(tmp_path: Path) -> None:
    problems = build_task(task(jsonl(tmp_path, ROWS))).problems
    whole = problems("rl", 150, 0)
    assert all(problems("rl", count, 0) == whole[:count] for count in range(1, 151))


def test_long_problems_are_left_out_on_request(tmp_path: Path) -> None:
    rows = [*ROWS[:3], {"problem": "x" * 2000, "answer": "1"}]
    source = MathSource(file=jsonl(tmp_path, rows), max_problem_characters=1000)
    with pytest.raises(PriorlabError, match="has 3 distinct problems"):
        build_task(MathTask(evaluate=source)).problems("evaluate", 4, seed=0)


def test_a_seed_repeats_and_another_differs(tmp_path: Path) -> None:
    math = build_task(task(jsonl(tmp_path, ROWS)))
    assert math.problems("rl", 20, seed=0) == math.problems("rl", 20, seed=0)
    assert math.problems("rl", 20, seed=0) != math.problems("rl", 20, seed=1)


def prompt_of(tmp_path: Path, **settings: Any) -> str:
    source = MathSource(file=jsonl(tmp_path, [{"problem": "Find {x} in \\{1\\}.", "answer": "1"}]))
    return build_task(MathTask(evaluate=source, **settings)).problems("evaluate", 1, seed=0)[0].prompt


def test_the_prompt_template_replaces_the_problem_and_leaves_other_braces(tmp_path: Path) -> None:
    assert prompt_of(tmp_path, prompt="Q: {problem}\nUse \\boxed{}.\nA:") == "Q: Find {x} in \\{1\\}.\nUse \\boxed{}.\nA:"


CHAT = """
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def test_a_chat_template_wraps_the_prompt_as_transformers_does(tmp_path: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for system in (None, "Be brief."):
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": "Find {x} in \\{1\\}. Go."})
        (expected,), _ = render_jinja_template([messages], chat_template=CHAT, add_generation_prompt=True)
        assert prompt_of(tmp_path, prompt="{problem} Go.", chat_template=CHAT, system=system) == expected
        assert expected.count("<|im_start|>") == len(messages) + 1


@pytest.mark.parametrize(
    ("template", "before"),
    [
        ("{{ bos_token + messages[0].content }}", ""),  # our tokenizers put a start there
        ("{{ strftime_now('%%') }}{{ messages[0]['content'] }}", "%"),
        ("{% for m in messages %}{{ m.content }}{% break %}{{ eos_token }}{% endfor %}", ""),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", ""),
        ("{{ ['é', '<'] | tojson }}{{ messages[0].content }}", '["é", "<"]'),
        ("{% if tools or documents %}with tools{% endif %}{{ messages[0].content }}", ""),
        ("{% if pad_token is defined %}{{ pad_token }}{% endif %}{{ messages[0].content }}", ""),
    ],
)
def test_templates_are_rendered_with_all_that_transformers_offers(template: str, before: str, tmp_path: Path) -> None:
    assert prompt_of(tmp_path, prompt="{problem}", chat_template=template) == before + "Find {x} in \\{1\\}."


def test_special_tokens_of_a_template_are_given_or_asked_for(tmp_path: Path) -> None:
    template = "{{ bos_token + messages[0].content + eos_token }}"
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    assert prompt_of(tmp_path, prompt="{problem}!", chat_template=template, special_tokens=tokens) == "<s>Find {x} in \\{1\\}.!</s>"
    with pytest.raises(PriorlabError, match=r"cannot be rendered: .*say what eos_token is: task\.special_tokens=\{eos_token: <TEXT>\}"):
        prompt_of(tmp_path, chat_template=template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}", "{{ raise_exception('no system messages') }}", "{{ messages.append(1) }}", "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[7].content.text }}", "{{ strftime_now(7) }}", "{{ eos_token }}", "{{ messages | tojson(no=1) }}",
    ],
)  # fmt: skip
def test_a_chat_template_that_does_not_work_is_named(template: str, tmp_path: Path) -> None:
    with pytest.raises(PriorlabError, match=r"task\.chat_template of task 'math' cannot be rendered"):
        prompt_of(tmp_path, chat_template=template)


def test_a_file_is_its_content_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, copy = task(jsonl(tmp_path, ROWS)), task(jsonl(tmp_path / "other", ROWS))
    assert first.train is not None
    assert first.train.sha256 is not None
    assert first.identity() == copy.identity()
    assert first.identity() != task(jsonl(tmp_path, ROWS[1:], "shorter.jsonl")).identity()
    assert MathTask.model_validate(first.model_dump(mode="json")) == first  # as a spec holds it


def test_training_rows_that_are_held_out_are_dropped_whatever_is_evaluated(tmp_path: Path) -> None:
    """By text alone: what is held out needs no answers, and white space does not matter."""
    held_out = [{"question": " ".join(row["problem"].split())} for row in ROWS[:50]]
    config = MathTask.model_validate(
        {
            "train": {"file": jsonl(tmp_path, ROWS)},
            "evaluate": {"file": jsonl(tmp_path, ROWS[50:60], "evaluated.jsonl")},
            "held_out": [{"file": jsonl(tmp_path, held_out, "held_out.jsonl"), "problem": "question"}],
        }
    )
    task = build_task(config)
    drawn = {problem.prompt for problem in task.problems("rl", 150, seed=0)}
    assert len(drawn) == 150
    prompts = [config.prompt.replace("{problem}", row["problem"]) for row in ROWS]
    assert drawn == set(prompts[50:])  # also those evaluated, which nobody declared
    with pytest.raises(PriorlabError, match="has 150 distinct problems in its 'rl' split"):
        task.problems("rl", 151, seed=0)


def test_a_file_changed_after_planning_is_refused(tmp_path: Path) -> None:
    planned = task(jsonl(tmp_path, ROWS))
    jsonl(tmp_path, ROWS[1:])
    with pytest.raises(PriorlabError, match="has changed since the run was planned"):
        build_task(planned).problems("rl", 1, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "train and evaluate are both missing"),
        ({"train": {}}, "give exactly one of the two"),
        ({"train": {"hub": "a/b", "file": __file__.replace(".py", ".jsonl")}}, "which cannot be read: No such file"),
        ({"train": {"file": "nowhere.jsonl"}}, "file is 'nowhere.jsonl', which cannot be read: No such file or directory"),
        ({"train": {"file": "data.xlsx"}}, r"file is 'data.xlsx'; it must end in .jsonl, .parquet, .csv"),
        ({"train": {"hub": "a/b", "answer_pattern": "("}}, "is not a regular expression"),
        ({"train": {"hub": "a/b", "answer_pattern": "#.*"}}, "put a group"),
        ({"train": {"hub": "a/b"}, "prompt": "Solve!"}, "it needs {problem}"),
        ({"train": {"hub": "a/b"}, "system": "Hi"}, "a system message needs a chat_template"),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_the_recipe_is_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        MathTask.model_validate(settings)
    assert message in str(error.value)


def test_the_hub_out_of_reach_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    math = build_task(MathTask(evaluate=MathSource(hub="nobody/no-such-data")))
    with pytest.raises(PriorlabError, match=r"cannot load the dataset 'nobody/no-such-data'.*task\.evaluate\.file=COPY\.parquet"):
        math.problems("evaluate", 1, seed=0)


# One row shaped like each public dataset, by its card.
SHAPES: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "How many?", "answer": "She has 4-1=<<4-1=3>>3 left.\n#### 3"},
    "math500": {"problem": "How many?", "solution": "$\\boxed{3}$", "answer": "3", "subject": "Algebra", "level": 1, "unique_id": "x"},
    "aime24": {"id": 60, "problem": "How many?", "solution": "...", "answer": "003", "url": "u", "year": "2024"},
    "aime25": {"problem": "How many?", "answer": "3", "id": "0"},
    "amc23": {"id": 0, "answer": "3.0", "url": "u", "question": "How many?"},
    "minerva": {"question": "How many?", "answer": "3"},
    "olympiadbench": {"id": 1, "question": "How many?", "solution": ["so"], "final_answer": ["$3$"], "unit": None},
    "dapo-math": {"id": 60, "problem": "How many?", "solution": "...", "answer": "003", "url": "u", "year": "2024"},
}


def presets() -> list[str]:
    return [name for name in available("task") if recipe_task(name).kind == "math"]


def recipe_task(name: str, *overrides: str) -> Any:
    (cell,) = load_recipe("quickstart", [f"task={name}", "model.max_positions=2048", *overrides]).cells()
    return cell.recipe.task


@pytest.mark.parametrize("name", presets())
def test_each_preset_reads_rows_of_its_data_set(name: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path, [SHAPES[name]])
    config = recipe_task(name, "task.evaluate.hub=null", f"task.evaluate.file={file}")
    (problem,) = build_task(config).problems("evaluate", 1, seed=0)
    assert problem.prompt.startswith("How many?\nPlease reason step by step")
    assert judge(problem.data["answer"], "\\boxed{3}").correct


def test_the_training_presets_read_rows_of_their_data_sets(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(60)]
    gsm8k = build_task(recipe_task("gsm8k", "task.train.hub=null", f"task.train.file={jsonl(tmp_path, rows)}", "task.evaluate=null"))
    assert any("It is" in document.response for document in gsm8k.documents("corpus", 5, seed=0))
    rows = [{"prompt": f"{i}?", "solution": str(i), "data_source": "math_dapo"} for i in range(60)]
    dapo = build_task(recipe_task("dapo-math", "task.train.hub=null", f"task.train.file={jsonl(tmp_path, rows)}", "task.evaluate=null"))
    assert all(problem.prompt.startswith(f"{problem.data['answer']}?") for problem in dapo.problems("rl", 20, seed=0))
