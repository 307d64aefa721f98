"""What LLaVA's ``model_vqa*`` commands share: their flags, and answering a file of questions into another."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llava.errors import UserError
from llava.eval.benchmark import Question, Response
from llava.eval.files import read_jsonl
from llava.eval.processes import launched_processes
from llava.eval.runner import Plan, ask_questions
from llava.options import (
    CommandParser,
    add_model_options,
    load_assistant,
    name_of_model,
    positive,
    read_generation,
)
from llava.utils import exit_on_user_error, refuse_overwriting, setup_logging

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VqaCommand:
    """What makes one of the commands different from another.

    Attributes:
        name: Of its module.
        summary: What it does.
        load: Reads the questions that the options name.
        add_arguments: Adds flags of its own.
        question_file: Default of ``--question-file``.
        template: Default of ``--conv-mode``.
        max_new_tokens: Default of the flag of that name.
        adapts_template: Whether a pretrained-only model gets a template with image tags.
        finish: Does what is left to do when all questions have been answered.
    """

    name: str
    summary: str
    load: Callable[[argparse.Namespace], Sequence[Question]]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    question_file: str = "tables/question.jsonl"
    template: str = "llava_v1"
    max_new_tokens: int = 1024
    adapts_template: bool = False
    finish: Callable[[argparse.Namespace, Sequence[Response]], object] = lambda options, responses: None

    @exit_on_user_error
    def main(self, argv: Sequence[str] | None = None) -> int:
        """Answer the questions of a chunk.

        Args:
            argv: Arguments; those of the process if not given.

        Returns:
            The exit code: 1 if every question has failed.

        Raises:
            UserError: If a file, the model or a setting does not serve.
        """
        setup_logging(logging.WARNING)
        options = self._parser().parse_args(argv)
        answers_file = Path(options.answers_file).expanduser()
        refuse_overwriting("--answers-file", answers_file, Path(options.question_file).expanduser())
        questions = chunk_of(self.load(options), options.num_chunks, options.chunk_idx)
        name = name_of_model(options.model_path)
        if self.adapts_template:
            options.conv_mode = template_with_tags(options.conv_mode, name)
        plan = Plan(
            label=answers_file.name,
            answers_file=answers_file,
            model_id=name,
            template=options.conv_mode,
            generation=read_generation(options),
            batch_size=options.batch_size,
        )
        with launched_processes() as processes:
            options.device = options.device or processes.device()
            asked = ask_questions(questions, load_assistant(options), plan, processes)
            if processes.is_first:
                self.finish(options, asked.responses)
        return _report_failures(asked.responses, answers_file)

    def _parser(self) -> CommandParser:
        parser = CommandParser(prog=f"python -m llava.eval.{self.name}", description=self.summary)
        parser.add_argument("--image-folder", default="", help="where the images lie (default: here)")
        parser.add_argument(
            *("--question-file", "--questions-file"),
            default=self.question_file,
            help=f"default: {self.question_file}",
        )
        parser.add_argument("--answers-file", default="answer.jsonl", help="default: answer.jsonl")
        parser.add_argument("--num-chunks", type=positive, default=1, metavar="N", help="default: 1")
        parser.add_argument("--chunk-idx", type=int, default=0, metavar="I", help="which one (default: 0)")
        parser.add_argument("--batch-size", type=positive, metavar="B", help="default: by the free memory")
        parser.add_argument("--temperature", type=float, default=0.2, help="default: 0.2")
        parser.add_argument("--top_p", type=float, metavar="P")
        parser.add_argument("--num_beams", type=positive, default=1, metavar="N", help="default: 1")
        parser.add_argument(
            "--max_new_tokens",
            type=positive,
            default=self.max_new_tokens,
            metavar="N",
            help=f"default: {self.max_new_tokens}",
        )
        parser.add_argument("--seed", type=int, help="of the sampling")
        self.add_arguments(parser)
        add_model_options(parser)
        parser.set_defaults(conv_mode=self.template)
        return parser


def _report_failures(responses: Sequence[Response], path: Path) -> int:
    """Say how many questions failed, and return an exit code: 1 if all of them did."""
    failed = [response for response in responses if response.error is not None]
    if failed:
        first = f"question {failed[0].question.id}: {failed[0].error}"
        logger.warning("%d of %d questions in %s failed; %s", len(failed), len(responses), path, first)
    return int(bool(failed) and len(failed) == len(responses))


def questions_of(options: argparse.Namespace) -> list[Question]:
    """Read LLaVA's question file: ``question_id``, ``text`` and mostly ``image``, below the image folder.

    Raises:
        UserError: If it is missing or malformed.
    """
    folder = Path(options.image_folder).expanduser()
    lines = read_jsonl(Path(options.question_file).expanduser(), "question_id", "text", "image?")
    return [
        Question(line["question_id"], line["text"], folder / line["image"] if line.get("image") else None)
        for line in lines
    ]


def chunk_of(questions: Sequence[T], count: int, index: int) -> Sequence[T]:
    """Return one of several consecutive parts of nearly equal length; the last ones may be empty.

    Args:
        questions: All of them.
        count: Of the parts.
        index: Of the wanted part, from 0.

    Raises:
        UserError: If there is no such part.
    """
    if not 0 <= index < count:
        raise UserError(f"--chunk-idx is {index}; accepted: 0 to {count - 1}, one less than --num-chunks")
    size = -(-len(questions) // count)
    return questions[index * size : (index + 1) * size]


def template_with_tags(template: str, model_name: str) -> str:
    """Return the template that LLaVA takes for a model of this name: pretrained projectors expect tags."""
    is_pretrained_only = "plain" in model_name and "finetune" not in model_name.lower()
    return f"{template}_mmtag" if is_pretrained_only and "mmtag" not in template else template
