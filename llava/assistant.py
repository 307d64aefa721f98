"""A loaded model that answers questions about pictures: the one road of command line, benchmarks and servers.

Shapes: H width of the language model, L positions of a prompt.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, choose_template, clip_text, find_template, wrap_image_tokens
from llava.engine.answer_text import AnswerText
from llava.engine.base import Engine, Generation
from llava.engine.stopwatch import Stopwatch
from llava.engine.transformers_engine import TransformersEngine
from llava.errors import MissingFileError, UserError
from llava.mm_utils import get_model_name_from_path, tokenizer_image_token
from llava.model.loading import LoadedModel, load_checkpoint
from llava.model.multimodal_encoder.token_reduction import Reducer, parse_reduction
from llava.model.placement import choose_placement
from llava.model.prompt_encoder import EncodedImage, PromptEncoder, ReducedImage
from llava.turns import Answer, Cost, Question, Turn

Item = TypeVar("Item")

SHAPES_CHECKPOINT = Path(__file__).parents[1] / "playground" / "shapes" / "checkpoints" / "llava-shapes"


class Assistant:
    """A model, its template and an engine.

    Args:
        loaded: From `llava.model.loading.load_checkpoint`.
        template: Conversation without turns.
        engine: Runs the language model; transformers in this process if missing.
    """

    def __init__(self, loaded: LoadedModel, template: Conversation, engine: Engine | None = None) -> None:
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.image_processor = loaded.image_processor
        self.template = template
        self.engine = engine or TransformersEngine(loaded.model, [loaded.tokenizer.eos_token_id])

    @classmethod
    def load(  # noqa: PLR0913 - one argument per choice of a command line
        cls,
        model_path: str | None = None,
        *,
        model_base: str | None = None,
        vision_tower: str | None = None,
        token_reduction: str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        conv_mode: str | None = None,
        load_8bit: bool = False,
        load_4bit: bool = False,
    ) -> Assistant:
        """Load a checkpoint.

        Args:
            model_path: Folder or hub id; the bundled shapes model if missing.
            model_base: Language model that a projector or an adapter goes with.
            vision_tower: CLIP folder or hub id instead of the checkpoint's.
            token_reduction: Setting instead of the checkpoint's ``mm_vision_token_reduce_func``.
            dtype: Float type; by default float32 on a CPU, float16 elsewhere.
            device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; the best there is if missing.
            conv_mode: Name of a conversation template instead of the checkpoint's.
            load_8bit: Quantize the language model to 8 bits.
            load_4bit: Quantize the language model to 4 bits.

        Raises:
            UserError: If something named here is missing or does not fit; the sentence says what.
        """
        if model_path is None:
            model_path = str(bundled_checkpoint())
        if conv_mode is not None:
            find_template(conv_mode)
        parse_reduction(token_reduction)
        placement = choose_placement(
            device,
            dtype,
            device_map="auto" if device is None else None,
            load_8bit=load_8bit,
            load_4bit=load_4bit,
        )
        loaded = load_checkpoint(
            model_path, model_base, placement, vision_tower=vision_tower, token_reduction=token_reduction
        )
        name = conv_mode or choose_template(
            getattr(loaded.model.config, "conv_template", None), get_model_name_from_path(model_path)
        )
        return cls(loaded, find_template(name))

    def answer(
        self, question: str, image: Image.Image | None = None, options: Generation | None = None
    ) -> Answer:
        """Answer one question about one picture, or about none.

        Raises:
            UserError: If the question is empty, too long, or does not fit the picture.
        """
        return self.answer_all([Question(question, () if image is None else (image,))], options)[0]

    def answer_all(
        self, questions: Sequence[Question], options: Generation | None = None, batch_size: int = 16
    ) -> list[Answer]:
        """Answer many questions, in their order; a picture that several of a batch share is encoded once.

        Args:
            questions: Any number.
            options: How the answers are written.
            batch_size: How many run together.

        Raises:
            UserError: If a question is empty, too long, or does not fit its pictures.
        """
        answers: list[Answer] = []
        for start in range(0, len(questions), batch_size):
            watch = Stopwatch(self.device)
            batch = questions[start : start + batch_size]
            pictures = {id(image): image for question in batch for image in question.images}
            seen = dict(zip(pictures, self.see(list(pictures.values())), strict=True))
            turns = [self._first_turn(question, seen) for question in batch]
            answers += _finish(self.run(turns, options or Generation(), watch.lap()))
        return answers

    def stream(
        self, question: str, image: Image.Image | None = None, options: Generation | None = None
    ) -> Iterator[str]:
        """Answer one question piece by piece; see `answer`."""
        return self.chat(image).stream(question, options)

    def chat(self, *images: Image.Image | None) -> Chat:
        """Begin a conversation about pictures, or about none."""
        return Chat(self, tuple(image for image in images if image is not None))

    @property
    def device(self) -> torch.device:
        """Where prompts are embedded."""
        return self.model.input_device

    @property
    def encoder(self) -> PromptEncoder:
        """Embeds prompts."""
        return self.model.prompt_encoder

    def see(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """Run the vision encoder over pictures, once for all questions about them.

        Raises:
            UserError: If the model is blind.
        """
        return self.encoder.encode_images(images)

    def render(self, text: str, images: int) -> str:
        """Put the placeholders of ``images`` pictures in front of a message that has none.

        Raises:
            UserError: If the message is empty, or its placeholders are not as many as the pictures.
        """
        if not clip_text(text):
            raise UserError("the question is empty; ask something")
        placeholders = text.count(DEFAULT_IMAGE_TOKEN)
        if placeholders == 0:
            text = f"{DEFAULT_IMAGE_TOKEN}\n" * images + text
        elif placeholders != images:
            raise UserError(f"{placeholders} <image> placeholders in the question, {images} images given")
        uses_start_end = bool(getattr(self.model.config, "mm_use_im_start_end", False))
        return wrap_image_tokens(text, self.template, uses_start_end)

    def reducer(self, setting: str | None) -> Reducer:
        """Return the reducer of a setting, or the model's own."""
        return self.encoder.reducer if setting is None else parse_reduction(setting)

    def _first_turn(self, question: Question, seen: dict[int, EncodedImage]) -> Turn:
        """Render a question as the first of a conversation; ``seen`` knows the pictures by identity."""
        message = self.render(question.text, len(question.images))
        images = tuple(seen[id(image)] for image in question.images)
        return self.turn(self.template, message, images, self.reducer(question.token_reduction))

    def turn(
        self, conversation: Conversation, message: str, images: tuple[EncodedImage, ...], reducer: Reducer
    ) -> Turn:
        """Add a rendered message to a conversation, which stays as it is, and open the answer."""
        conversation = conversation.copy()
        conversation.append_message(conversation.roles[0], message)
        conversation.append_message(conversation.roles[1], None)
        return Turn(conversation.get_prompt(), clip_text(message), images, reducer)

    def run(
        self, turns: Sequence[Turn], options: Generation, vision_ms: float = 0.0
    ) -> Generator[list[str], None, list[Answer]]:
        """Answer a batch of turns step by step.

        Args:
            turns: What to continue.
            options: How the answers are written.
            vision_ms: What the vision encoder took for the batch's pictures.

        Yields:
            Per turn the text that its step added, maybe none.

        Returns:
            The answers.

        Raises:
            UserError: If a prompt does not fit the model.
        """
        watch = Stopwatch(self.device)
        reduced = self._reduce(turns)
        reduction_ms = watch.lap()
        prompts, visual_tokens = self._embed(turns, reduced)
        texts = [AnswerText(self.tokenizer, self.template.ends[1]) for _ in turns]
        steps_ms = []
        for tokens in self.engine.stream(prompts, options):
            going = [
                None if token is None or text.stopped else token
                for token, text in zip(tokens, texts, strict=True)
            ]
            if all(token is None for token in going):
                break
            pieces = [
                "" if token is None else text.push(token) for token, text in zip(going, texts, strict=True)
            ]
            steps_ms.append(watch.lap())
            yield pieces
            watch.lap()  # what the reader did meanwhile is none of the answer's cost
        steps_ms.append(watch.lap())
        yield [text.finish() for text in texts]
        spent = (vision_ms, reduction_ms, steps_ms[0], sum(steps_ms[1:]))
        shares = [milliseconds / len(turns) for milliseconds in spent]
        return [
            Answer(text.text, Cost(turn.patches, count, len(text.ids), *shares), self._kept(images))
            for turn, text, count, images in zip(turns, texts, visual_tokens, reduced, strict=True)
        ]

    def _reduce(self, turns: Sequence[Turn]) -> list[list[ReducedImage]]:
        """Choose the patches that each turn's question needs, of its images."""
        reduced = self.encoder.reduce(
            [image for turn in turns for image in turn.images],
            [turn.question for turn in turns for _ in turn.images],
            [turn.reducer for turn in turns for _ in turn.images],
        )
        return _deal(reduced, [len(turn.images) for turn in turns])

    def _kept(self, images: Sequence[ReducedImage]) -> tuple[Tensor, ...]:
        """Return which patches of each whole image stayed, bool (rows, columns)."""
        if not images:
            return ()
        side = self.encoder.tower.num_patches_per_side
        # The first crop is the whole image; a CLS token in front of its patches has no place on it.
        return tuple(image.crops.kept[0, -side * side :].reshape(side, side).cpu() for image in images)

    @torch.inference_mode()
    def _embed(
        self, turns: Sequence[Turn], reduced: Sequence[Sequence[ReducedImage]]
    ) -> tuple[list[Tensor], list[int]]:
        """Embed the prompts with their images' tokens in place.

        Args:
            turns: What to continue.
            reduced: Their images.

        Returns:
            Embeddings, (L, H) per turn, and how many of each are visual tokens.

        Raises:
            UserError: If a prompt is longer than the model can read.
        """
        projected = self.encoder.project([image for images in reduced for image in images])
        images = _deal(projected, list(map(len, reduced)))
        prompts, visual_tokens = [], []
        for turn, own in zip(turns, images, strict=True):
            ids = torch.tensor(tokenizer_image_token(turn.prompt, self.tokenizer), device=self.device)
            visual_tokens.append(sum(map(len, own)))
            self._check_length(len(ids) - len(own) + visual_tokens[-1])
            prompts.append(ids)
        return self.encoder.embed(prompts, images), visual_tokens

    def _check_length(self, length: int) -> None:
        """Refuse a prompt that the model would have to cut.

        Raises:
            UserError: If it has no room for one more token.
        """
        config = self.model.config
        limits = (getattr(config, "tokenizer_model_max_length", None), config.max_position_embeddings)
        limit = min(limit for limit in limits if limit)
        if length >= limit:
            raise UserError(
                f"the prompt has {length} tokens with its pictures and this model reads at most {limit - 1}; "
                "ask something shorter or reduce the pictures further"
            )


class Chat:
    """A conversation; each turn reduces the pictures anew for its question, the vision encoder runs once.

    Attributes:
        answers: All so far.
        token_reduction: Setting for the next turns; None for the model's.
        prompt: The last turn's, as the model reads it.
    """

    def __init__(self, assistant: Assistant, images: tuple[Image.Image, ...]) -> None:
        self.answers: list[Answer] = []
        self.token_reduction: str | None = None
        self._assistant = assistant
        self._images = images
        self._seen: tuple[EncodedImage, ...] | None = None
        self._conversation = assistant.template.copy()
        self.prompt = ""

    @property
    def roles(self) -> tuple[str, str]:
        """What the template calls the user and the model."""
        return self._conversation.roles

    def ask(self, text: str, options: Generation | None = None) -> Answer:
        """Answer the next question.

        Raises:
            UserError: If the question is empty, too long, or names pictures that are not there.
        """
        for _ in self.stream(text, options):
            pass
        return self.answers[-1]

    def stream(self, text: str, options: Generation | None = None) -> Iterator[str]:
        """Answer the next question piece by piece; a turn that is given up or fails leaves no trace.

        Raises:
            UserError: As `ask` does.
        """
        assistant = self._assistant
        message = assistant.render(text, len(self._images) if not self.answers else 0)
        reducer = assistant.reducer(self.token_reduction)
        watch = Stopwatch(assistant.device)
        if self._seen is None:
            self._seen = tuple(assistant.see(self._images))
        turn = assistant.turn(self._conversation, message, self._seen, reducer)
        self.prompt = turn.prompt
        running = assistant.run([turn], options or Generation(), watch.lap())
        answer = yield from _pieces_of_one(running)
        self._conversation.append_message(self._conversation.roles[0], message)
        self._conversation.append_message(self._conversation.roles[1], answer.text)
        self.answers.append(answer)


def _deal(items: Sequence[Item], counts: Sequence[int]) -> list[list[Item]]:
    """Cut a sequence into lists of these lengths."""
    rest = iter(items)
    return [list(islice(rest, count)) for count in counts]


def _pieces_of_one(running: Generator[list[str], None, list[Answer]]) -> Generator[str, None, Answer]:
    """Yield the pieces of a batch of one answer, return the answer."""
    while True:
        try:
            (piece,) = next(running)
        except StopIteration as ended:
            return ended.value[0]
        if piece:
            yield piece


def _finish(running: Generator[list[str], None, list[Answer]]) -> list[Answer]:
    """Run a batch to its end."""
    while True:
        try:
            next(running)
        except StopIteration as ended:
            return ended.value


def bundled_checkpoint() -> Path:
    """Return the folder of the shapes model, which comes with the repository, not with the package.

    Raises:
        MissingFileError: If it is not there.
    """
    if not SHAPES_CHECKPOINT.is_dir():
        raise MissingFileError(
            f"no --model-path was given and the bundled shapes model is not at {SHAPES_CHECKPOINT}: it comes "
            "with a clone of the repository (playground/shapes/checkpoints); clone it, or name a LLaVA-1.5 "
            "checkpoint such as liuhaotian/llava-v1.5-7b"
        )
    return SHAPES_CHECKPOINT
