"""Math for real: adversarial answers against math-verify in the workers, and the stages on a local file."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

from pipeline.config.evaluation import Verification
from pipeline.config.tasks import MathSource, MathTask
from pipeline.errors import PriorlabError
from pipeline.experiment.graph import StageNode
from pipeline.store.files import write_json_atomically
from stages.corpus.tokenizer import check_prompts
from stages.tasks import Problem, build_task
from stages.tasks.verifier import Verifier
from tests.conftest import Lab, smoke_graph, start

ROWS = [{"problem": f"{i}+1?", "answer": str(i + 1), "solution": f"{i}+1\n\n= {i + 1}, so \\boxed{{{i + 1}}}."} for i in range(300)]
# Each makes sympy work for longer than anybody waits.
ENDLESS = ["\\boxed{9^{9^{9^{9}}}}", "\\boxed{((((9!)!)!)!)!}", "\\boxed{10^{10^{10}}}"]
MEGABYTE = 1_000_000
ODD = [
    "\\boxed{" + "{" * MEGABYTE, "(" * MEGABYTE, "\\boxed{" + "\\sqrt{" * 300 + "2" + "}" * 301, "$" * MEGABYTE, "9" * MEGABYTE,
    "\\boxed{" + "9" * MEGABYTE + "}", "\\boxed{1} " * 100_000, "\ud800",
    "\U0001f9ee\u202e\u0661\u0668\x00" * 100_000, "\\boxed{\u2469\u2467}",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_adversarial_answers_hold_no_worker_past_its_limit_and_score_0(data: Path) -> None:
    seconds = 3.0
    problem = Problem("p", "", {"answer": "18"})
    build = partial(build_task, MathTask(evaluate=MathSource(file=str(data))))
    with Verifier(build, Verification(verify_workers=2, verify_seconds=seconds)) as verifier:
        verifier.verify([(problem, "\\boxed{18}")])  # the workers have started
        started = time.perf_counter()
        verdicts = verifier.verify((problem, response) for response in [*ODD, *ENDLESS, "\\boxed{18}"])
        took = time.perf_counter() - started
        assert [verdict.correct for verdict in verdicts] == [False] * len(ODD + ENDLESS) + [True]
        counts = verifier.counts
        assert counts.failures <= len(ENDLESS)  # the others are plain wrong answers
        assert counts.timeouts >= 1
        again = time.perf_counter()
        assert verifier.verify([(problem, "\\boxed{18}")])[0].correct  # the pool goes on
        assert time.perf_counter() - again < 30
    # Once as a chunk and once alone; the rest is restarting workers.
    assert took < 2 * seconds * (len(ENDLESS) + 1) + 40


def corpus_node(*overrides: str) -> StageNode:
    settings = [
        "axes.prior=[ce]",
        "model.max_positions=2048",
        "corpus.documents=300",
        "corpus.heldout_documents=100",
        "task=null",
        *overrides,
    ]
    (plan,) = smoke_graph(*settings).cells
    return plan.chain["corpus"]


def run_corpus(lab: Lab, node: StageNode) -> tuple[int, str]:
    folder = lab.folder(node)
    folder.path.mkdir(parents=True)
    write_json_atomically(folder.spec, node.spec(lab.home, "test"))
    code = start(lab, node).wait(timeout=300)
    return code, (folder.path / "out.log").read_text()


def test_worked_solutions_become_a_corpus_that_decodes_to_them(lab: Lab, data: Path) -> None:
    node = corpus_node(f"task={{kind: math, prompt: '{{problem}} ', train: {{file: {data}, solution: solution}}}}")
    code, log = run_corpus(lab, node)
    assert code == 0, log
    export = lab.folder(node).export
    tokenizer = AutoTokenizer.from_pretrained(export / "tokenizer")
    blocks = datasets.load_from_disk(str(export / "train"))["input_ids"]
    text = tokenizer.decode([token for block in blocks for token in block], skip_special_tokens=False)
    whole = {f"{row['problem']} {row['solution']}" for row in ROWS}
    documents = text.split(tokenizer.eos_token)[1:-1]
    assert len(documents) > 200
    assert set(documents) <= whole  # line breaks, even two in a row, survive


def test_a_corpus_of_a_task_without_solutions_fails_with_the_way_out(lab: Lab, data: Path) -> None:
    code, log = run_corpus(lab, corpus_node(f"task={{kind: math, train: {{file: {data}}}}}"))
    assert code == 2
    assert "error: task 'math' has no worked solutions" in log
    assert "task.train.solution" in log
    assert "Traceback" not in log


def test_a_prompt_longer_than_its_room_is_refused_before_the_engine_starts() -> None:
    from stages.corpus.tokenizer import character_tokenizer

    problems = [Problem("a", "1+1", {}), Problem("b", "1" * 30, {})]
    check_prompts(problems, character_tokenizer("1+"), 31)
    with pytest.raises(PriorlabError, match=r"1 of 2 prompts are longer than task\.max_prompt_tokens = 30, the longest has 31 tokens"):
        check_prompts(problems, character_tokenizer("1+"), 30)
