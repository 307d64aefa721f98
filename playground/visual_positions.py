"""What it is worth to give visual tokens their patches' positions, and a merged token its size.

LLaVA numbers the tokens of a prompt one by one, whatever was dropped, and attends to a mean of hundreds of
patches as to one. Here the same prompts are run in four ways, with the language model alone and a mask of our
own: as published; at the positions that the patches have without reduction (a merged token at the median of
its patches, the text where it always stands); with the logarithm of the number of its patches added to the
attention to a merged token; and with both.

``python -m playground.visual_positions --model-path ...`` prints a table; docs/methods.md has one.

Shapes: N patches of an image, n visual tokens, L tokens of a prompt, H width of the language model.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from llava.assistant import Assistant
from llava.compare.subjects import load_subjects
from llava.compare.tables import starred
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.errors import UserError
from llava.eval.benchmark import Benchmark, Mark, Question, Response
from llava.eval.data_check import DATA
from llava.eval.intervals import paired_difference
from llava.markdown import markdown_table
from llava.messages import read_image
from llava.mm_utils import tokenizer_image_token
from llava.model.multimodal_encoder.reducers.base import Selection
from llava.model.multimodal_encoder.reducers.registry import REDUCERS, parse_reduction, signals_of
from llava.model.multimodal_encoder.token_reduction import NoReduction, Random, Trim
from llava.options import CommandParser, positive
from llava.utils import exit_on_user_error

WAYS = {"as published": (False, False), "places": (True, False), "size": (False, True), "both": (True, True)}
"""What is done: whether positions are the patches', and whether the merged token's size counts."""
IN_RASTER_ORDER = (NoReduction, Trim, Random, Selection)
"""Reductions whose tokens are patches in raster order, and maybe the mean of the rest behind them."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question with its reduced image.

    Attributes:
        embeddings: (L, H).
        start: Of the visual tokens.
        kept: Raster indices of the patches that stayed, ascending; their tokens come first.
        patches: N.
        tokens: n; one more than what stayed if there is a merged token.
    """

    embeddings: Tensor
    start: int
    kept: Tensor
    patches: int
    tokens: int

    def positions(self, in_place: bool) -> Tensor:
        """Return the position of every token, (L,)."""
        length = len(self.embeddings)
        if not in_place:
            return torch.arange(length)
        dropped = torch.ones(self.patches, dtype=torch.bool)
        dropped[self.kept] = False
        places = self.kept
        if self.tokens > len(self.kept):
            places = torch.cat([places, dropped.nonzero().flatten().median().unsqueeze(0)])
        behind = torch.arange(length - self.start - self.tokens) + self.patches
        return torch.cat([torch.arange(self.start), self.start + places, self.start + behind])

    def bias(self, with_size: bool) -> Tensor:
        """Return what is added to the attention of every token to every other one, (L, L)."""
        length = len(self.embeddings)
        bias = torch.full((length, length), -torch.inf).triu(1)
        if with_size and self.tokens > len(self.kept):
            bias[:, self.start + self.tokens - 1] += math.log(self.patches - len(self.kept))
        return bias


@torch.inference_mode()
def prompt_of(assistant: Assistant, question: Question, reduction: str, template: str) -> Prompt:
    """Encode and reduce the image of a question and embed its prompt."""
    encoder, reducer = assistant.encoder, parse_reduction(reduction)
    encoder.tower.prepare(reducer)
    assert question.image is not None
    image = read_image(question.image)
    encoded = encoder.encode([encoder.preprocess(image)], [image.size], signals_of([reducer]))
    (reduced,) = encoder.reduce(encoded, [question.text], [reducer])
    projected = encoder.project([reduced])
    conversation = conv_templates[template].copy()
    conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{question.text}")
    conversation.append_message(conversation.roles[1], None)
    ids = torch.tensor(tokenizer_image_token(conversation.get_prompt(), assistant.tokenizer))
    (embeddings,) = encoder.embed([ids], [projected])
    kept = reduced.crops.kept[0]
    start = int((ids == IMAGE_TOKEN_INDEX).nonzero()[0])
    return Prompt(embeddings, start, kept.nonzero().flatten(), len(kept), len(projected[0]))


@torch.inference_mode()
def answer(assistant: Assistant, prompt: Prompt, in_place: bool, with_size: bool, longest: int) -> str:
    """Write an answer, greedily; every token runs the whole prompt again."""
    model, tokenizer = assistant.model, assistant.tokenizer
    positions, bias = prompt.positions(in_place), prompt.bias(with_size)
    embeddings = prompt.embeddings
    ids: list[int] = []
    while len(ids) < longest:
        logits = model(
            inputs_embeds=embeddings[None],
            attention_mask=bias[None, None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=1,
        ).logits
        token = int(logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
        embeddings = torch.cat([embeddings, model.get_input_embeddings()(torch.tensor([token]))])
        positions = torch.cat([positions, positions[-1:] + 1])
        seen = torch.cat([bias[-1], bias.new_zeros(1)])
        bias = torch.cat([torch.cat([bias, bias.new_full((len(bias), 1), -torch.inf)], dim=1), seen[None]])
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def marks_by_way(
    assistant: Assistant, benchmark: Benchmark, questions: Sequence[Question], reduction: str
) -> dict[str, list[Mark]]:
    """Ask all questions in each way.

    Raises:
        UserError: If it is not known of the reduction's tokens where they belong.
    """
    if not isinstance(parse_reduction(reduction), IN_RASTER_ORDER):
        accepted = ", ".join(name for name, method in REDUCERS.items() if issubclass(method, IN_RASTER_ORDER))
        raise UserError(
            f"{reduction} has other tokens than patches in raster order and one mean of the rest; accepted: "
            f"none, {accepted}"
        )
    assert benchmark.mark is not None
    marks: dict[str, list[Mark]] = {way: [] for way in WAYS}
    for question in tqdm(questions, desc=reduction, mininterval=5):
        prompt = prompt_of(assistant, question, reduction, benchmark.template)
        for way, settings in WAYS.items():
            text = answer(assistant, prompt, *settings, benchmark.generation.max_new_tokens)
            marks[way].append(benchmark.mark(Response(question, text)))
    return marks


def rows(reduction: str, marks: dict[str, list[Mark]], benchmark: Benchmark) -> Iterator[list[str]]:
    """Return a row per way: score, and paired difference to the published one."""
    published = next(iter(marks.values()))
    for way, own in marks.items():
        difference = starred(paired_difference(published, own, benchmark.headline))
        yield [reduction, way, f"{benchmark.headline(own):.1f}", "-" if own is published else difference]


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Compare the ways on questions about shapes."""
    parser = CommandParser(prog="python -m playground.visual_positions", description=main.__doc__)
    parser.add_argument("--model-path", help="default: the bundled shapes model")
    parser.add_argument("--token-reduction", nargs="+", default=["TRIM:16", "TRIM:64"], metavar="SPEC")
    parser.add_argument("--on", default="shapes", choices=("shapes", "hard-shapes"))
    parser.add_argument("--questions", type=positive, default=400)
    options = parser.parse_args(argv)
    assistant = Assistant.load(options.model_path, device="cpu")
    if assistant.encoder.config.image_aspect_ratio == "anyres":
        raise UserError("images in tiles have no single grid of positions; take a checkpoint without anyres")
    (subject,) = load_subjects([options.on], DATA, options.questions)
    questions = subject.questions[: options.questions]
    table = [
        row
        for reduction in options.token_reduction
        for row in rows(
            reduction, marks_by_way(assistant, subject.benchmark, questions, reduction), subject.benchmark
        )
    ]
    print(markdown_table(["reduction", "way", "score", "less published"], table))


if __name__ == "__main__":
    sys.exit(main())
