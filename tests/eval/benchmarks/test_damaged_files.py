"""Values of any type in any place of any benchmark's files: a score, or one sentence that names the file."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from llava.engine.base import Generation
from llava.errors import UserError
from llava.eval.benchmark import Mark, Response
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.evaluate import describe_scores
from llava.eval.files import json_line
from llava.eval.provenance import question_digests
from llava.eval.runner import Plan, answer_record, request_for

VALUES: tuple[object, ...] = (None, True, 5, -1, 2.5, "x", "x" * 300, "a\0b", [], [1], [None], {}, {"a": [1]})
PLAN = Plan("", Path("answers.jsonl"), "model", "vicuna_v1", Generation(max_new_tokens=8))


def go_through(benchmark, folder):
    """Do all that a run does with the files but asking the model."""
    split = benchmark.splits[0] if benchmark.splits else ""
    questions = benchmark.load(folder, split)
    question_digests(questions)
    responses = [Response(question, "A") for question in questions]
    for response in responses:
        request_for(response.question, PLAN)
        json_line(answer_record(response, "model")).encode()
    scored = [response for response in responses if response.question.target is not None]
    if benchmark.mark:
        describe_scores(benchmark, [benchmark.mark(response) for response in scored])
    if benchmark.judge:
        for response in scored:
            benchmark.judge.messages(response)
            benchmark.judge.record(response, "0.5")
        describe_scores(benchmark, [Mark(r.question.unit, 1.0, r.question.group, "0.5") for r in scored])
    if benchmark.export:
        benchmark.export(responses, folder, split, "run")


def places(document, depth=0):
    """Yield paths to a value, to what it has, and so on; of what is alike, the first only."""
    yield ()
    items = document.items() if isinstance(document, dict) else enumerate(document[:1])
    if isinstance(document, dict) and depth == 0 and len(document) > 8:  # a table of objects by their ids
        items = list(items)[:1]
    for key, value in items:
        if isinstance(value, dict | list):
            yield from ((key, *rest) for rest in places(value, depth + 1))
        else:
            yield (key,)


def replaced(document, path, value):
    if not path:
        return value
    document = copy.deepcopy(document)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


def files_of(folder):
    return [path for path in sorted(folder.rglob("*.json*")) if path.suffix in (".json", ".jsonl")]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_no_value_ends_in_a_traceback(benchmark, miniatures, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(
        miniatures / benchmark.folder, folder, ignore=shutil.ignore_patterns("answers", "answers_upload")
    )
    tried = refused = 0
    for file in files_of(folder):
        text = file.read_text()
        is_lines = file.suffix == ".jsonl" or "coco_pope" in file.name
        first, _, rest = text.partition("\n") if is_lines else (text, "", "")
        document = json.loads(first)
        for path in places(document):
            for value in VALUES:
                file.write_text(json.dumps(replaced(document, path, value)) + "\n" + rest)
                tried += 1
                try:
                    go_through(benchmark, folder)
                except UserError as error:
                    refused += 1
                    assert str(error)
                except Exception as error:
                    error.add_note(f"{file.name}: {path} is {value!r:.40}")
                    raise
        file.write_text(text)
    go_through(benchmark, folder)
    assert refused > 0.2 * tried or not tried
