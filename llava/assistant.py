"""A loaded model that answers requests: the single entry point of command lines, benchmarks and servers.

Shapes: H width of the language model, L positions of a prompt.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import (
    Conversation,
    choose_template,
    clip_text,
    find_template,
    user_turns,
    wrap_image_tokens,
)
from llava.engine.base import Engine, Event, Generation
from llava.engine.recorded_steps import recorder_for
from llava.engine.router import Router
from llava.engine.stopwatch import Stopwatch
from llava.engine.transformers_engine import TransformersEngine
from llava.engine.vllm_engine import VllmOptions, load_with_vllm
from llava.errors import MissingFileError, PromptTooLongError, UserError
from llava.image_features import CACHE_MIB, FeatureCache, content_key
from llava.messages import Answer, Cost, Failure, ImageSource, Message, Request, answer_of, read_image
from llava.mm_utils import get_model_name_from_path, tokenizer_image_token
from llava.model.cuda_graphs import CudaGraphs
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.loading import LoadedModel, load_checkpoint
from llava.model.multimodal_encoder.reducers.base import Signal
from llava.model.multimodal_encoder.reducers.registry import parse_reduction, reads_question, signals_of
from llava.model.multimodal_encoder.token_reduction import Reducer
from llava.model.placement import choose_placement
from llava.model.prompt_encoder import EncodedImage, PromptEncoder, ReducedImage
from llava.model.prompt_model import LlavaPromptModel
from llava.utils import check_characters

SHAPES_CHECKPOINT = Path(__file__).parents[1] / "playground" / "shapes" / "checkpoints" / "llava-shapes"
IMAGES_AT_ONCE = min(os.cpu_count() or 1, 16)  # that are read
BATCH_SIZE = 16  # requests that are encoded and answered together


@dataclass(frozen=True, slots=True)
class _ReadImage:
    """An image that was read.

    Attributes:
        key: Of its content.
        size: In pixels.
        pixels: (C, 3, height, width), if it has not been encoded yet.
        encoded: From the vision encoder, if it has been.
    """

    key: Hashable
    size: tuple[int, int]
    pixels: Tensor | None = None
    encoded: EncodedImage | None = None


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A request as the model reads it.

    Attributes:
        text: Rendered conversation with one ``<image>`` per image.
        clip_text: What CLIP's text encoder reads.
        images: Sources of all images, in the order of their placeholders.
        reducer: Of this request.
        generation: Of this request, with the text that ends a turn of the template.
    """

    text: str
    clip_text: str
    images: tuple[ImageSource, ...]
    reducer: Reducer
    generation: Generation


@dataclass(slots=True)
class _Job:
    """A request on its way through vision encoder, reducer and engine.

    Attributes:
        request: What was asked.
        prompt: As the model reads it; None if it cannot be rendered.
        patches: Patches of all images.
        vision_ms: This request's share.
        reduction_ms: Likewise.
        images: Its images, reduced.
        kept: See `Answer`.
        visual_tokens: Tokens of all images in the prompt.
        engine_id: Its id there; -1 before.
        prefill_ms: Likewise a share.
        decode_ms: Likewise.
        new_tokens: Tokens of the answer so far.
        text: Of the answer so far.
        result: What came of it, once it has ended.
    """

    request: Request
    prompt: _Prompt | None = None
    patches: int = 0
    vision_ms: float = 0.0
    reduction_ms: float = 0.0
    images: Sequence[ReducedImage] = ()
    kept: tuple[Tensor, ...] = ()
    visual_tokens: int = 0
    engine_id: int = -1
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    new_tokens: int = 0
    text: str = ""
    result: Answer | Failure | None = None

    def fail(self, error: UserError) -> None:
        """End without an answer."""
        self.result = Failure(error, self.request.id)

    def take(self, event: Event) -> str:
        """Add what the engine did, and return the text that it added."""
        if self.new_tokens == 0:
            self.prefill_ms += event.milliseconds
        else:
            self.decode_ms += event.milliseconds
        self.new_tokens += event.token is not None
        self.text += event.text
        if event.finished:
            cost = Cost(
                patches=self.patches,
                visual_tokens=self.visual_tokens,
                new_tokens=self.new_tokens,
                vision_ms=self.vision_ms,
                reduction_ms=self.reduction_ms,
                prefill_ms=self.prefill_ms,
                decode_ms=self.decode_ms,
            )
            self.result = Answer(self.text, cost, self.kept, event.finished, self.request.id)
        return event.text


class Assistant:
    """A model, its template and an engine; several threads may ask it at once.

    Args:
        loaded: From `llava.model.loading.load_checkpoint`.
        template: Conversation without turns.
        engine: Runs the language model; transformers in this process if missing.
        image_cache_mib: The most that encoded images take which are kept for further questions, in MiB.
        cuda_graphs: Replay short passes of tower and language model on a GPU; see `llava.model.cuda_graphs`.
    """

    def __init__(
        self,
        loaded: LoadedModel[LlavaLlamaForCausalLM] | LoadedModel[LlavaPromptModel],
        template: Conversation,
        engine: Engine | None = None,
        image_cache_mib: float = CACHE_MIB,
        cuda_graphs: bool = True,
    ) -> None:
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.image_processor = loaded.image_processor
        self.template = template
        self.engine = TransformersEngine(self.whole_model, loaded.tokenizer) if engine is None else engine
        self.use_cuda_graphs(cuda_graphs)
        self.router = Router(self.engine)
        self.features = FeatureCache(image_cache_mib)

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
        vllm: VllmOptions | None = None,
        image_cache_mib: float = CACHE_MIB,
        compile_vision: bool = False,
        cuda_graphs: bool = True,
    ) -> Assistant:
        """Load a checkpoint.

        Args:
            model_path: Folder or hub id; the bundled shapes model if missing.
            model_base: Language model that a projector or an adapter goes with.
            vision_tower: CLIP folder or hub id instead of the checkpoint's.
            token_reduction: Setting instead of the checkpoint's ``mm_vision_token_reduce_func``.
            dtype: Dtype; by default float32 on a CPU, float16 elsewhere.
            device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; the best there is if missing.
            conv_mode: Name of a conversation template instead of the checkpoint's.
            load_8bit: Quantize the language model to 8 bits.
            load_4bit: Quantize the language model to 4 bits.
            vllm: How vLLM runs the language model; if missing, transformers does.
            image_cache_mib: The most that encoded images take which are kept for further questions, in MiB.
            compile_vision: Compile the vision encoder; see `CLIPVisionTower.compile_encoder`.
            cuda_graphs: Replay short passes on a GPU; see `llava.model.cuda_graphs`.

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
        loaded: LoadedModel[LlavaLlamaForCausalLM] | LoadedModel[LlavaPromptModel]
        engine: Engine | None = None
        changes = {"vision_tower": vision_tower, "token_reduction": token_reduction}
        if vllm is None:
            loaded = load_checkpoint(model_path, model_base, placement, **changes)
        else:
            loaded, engine = load_with_vllm(vllm, model_path, model_base, placement, **changes)
        name = conv_mode or choose_template(
            getattr(loaded.model.config, "conv_template", None), get_model_name_from_path(model_path)
        )
        assistant = cls(loaded, find_template(name), engine, image_cache_mib, cuda_graphs)
        if compile_vision:
            assistant.encoder.tower.compile_encoder()
        return assistant

    def use_cuda_graphs(self, wanted: bool = True) -> None:
        """Replay short passes of the vision tower and the language model, where they run on a GPU.

        Args:
            wanted: False starts every kernel by itself, which takes longer and less memory.
        """
        self.cuda_graphs = wanted
        if isinstance(self.engine, TransformersEngine):
            self.engine.record(recorder_for(self.whole_model) if wanted else None)
        tower = self.model.get_vision_tower()
        if tower is not None and tower.is_loaded:
            on_gpu = wanted and tower.device.type == "cuda"
            tower.record(CudaGraphs(tower.device) if on_gpu else None)

    @property
    def whole_model(self) -> LlavaLlamaForCausalLM:
        """The model, where the layers of its language model are here and not in an engine elsewhere."""
        assert isinstance(self.model, LlavaLlamaForCausalLM)
        return self.model

    @property
    def encoder(self) -> PromptEncoder:
        """Embeds prompts."""
        return self.model.prompt_encoder

    def answer(
        self, question: str, image: ImageSource | None = None, generation: Generation | None = None
    ) -> Answer:
        """Answer one question about one image, or about none.

        Args:
            question: The words; ``<image>`` may mark where the image belongs.
            image: An image, its file, or its values as an array.
            generation: How the answer is written; greedily if missing.

        Raises:
            UserError: If the question is empty, too long, or does not fit the image.
        """
        images = () if image is None else (image,)
        request = Request.ask(question, *images, generation=generation or Generation())
        (result,) = self.answer_all([request])
        return answer_of(result)

    def answer_all(
        self, requests: Iterable[Request], batch_size: int = BATCH_SIZE
    ) -> Iterator[Answer | Failure]:
        """Answer any number of requests, in their order, each as soon as it and those before it are done.

        Requests are taken, and their images read, a few at a time, so that millions run in bounded memory; an
        image is encoded once as long as it is kept. A request that cannot be answered yields its error in its
        place, and the others continue.

        Args:
            requests: Taken one after the other.
            batch_size: How many are answered together; twice as many are taken ahead of the oldest.

        Raises:
            UserError: If ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; accepted: 1 or more")
        source = iter(requests)
        jobs: deque[_Job] = deque()
        running: dict[int, _Job] = {}
        is_exhausted = False
        try:
            while jobs or not is_exhausted:
                while jobs and (result := jobs[0].result) is not None:
                    jobs.popleft()
                    yield result
                room = min(batch_size - len(running), 2 * batch_size - len(jobs))
                if not is_exhausted and (room >= (batch_size + 1) // 2 or not running):
                    taken = list(islice(source, room))
                    is_exhausted = len(taken) < room
                    begun = self._begin(taken)
                    jobs += begun
                    running |= {job.engine_id: job for job in begun if job.result is None}
                if running:
                    event = self.router.wait(running)
                    running[event.id].take(event)
                    if event.finished:
                        del running[event.id]
        finally:
            for engine_id in running:
                self.router.cancel(engine_id)

    def stream(self, request: Request) -> Generator[str, None, Answer]:
        """Answer one request piece by piece; closing the generator ends the work.

        Args:
            request: What to answer.

        Yields:
            Text, as it becomes certain.

        Returns:
            The answer.

        Raises:
            UserError: If the request cannot be answered.
        """
        (job,) = self._begin([request])
        try:
            while job.result is None:
                if piece := job.take(self.router.wait([job.engine_id])):
                    yield piece
        finally:
            if job.result is None:
                self.router.cancel(job.engine_id)
        return answer_of(job.result)

    def chat(self, *images: ImageSource | None) -> Chat:
        """Begin a conversation about images, or about none."""
        return Chat(self, tuple(image for image in images if image is not None))

    def render(self, request: Request) -> str:
        """Return the prompt of a request, with one ``<image>`` per image.

        Raises:
            UserError: If a message of the user is empty, or its placeholders are not as many as its images.
        """
        return self._prompt(request).text

    def _begin(self, requests: Sequence[Request]) -> list[_Job]:
        """Encode requests together and hand them to the engine; those that fail have a result already."""
        jobs = [_Job(request) for request in requests]
        for job in jobs:
            try:
                job.prompt = self._prompt(job.request)
            except UserError as error:
                job.fail(error)
        with torch.inference_mode():
            self._encode(jobs)
            self._submit([job for job in jobs if job.result is None])
        return jobs

    def _prompt(self, request: Request) -> _Prompt:
        """Render a request.

        Raises:
            UserError: See `render`.
        """
        template = self.template if request.template is None else find_template(request.template)
        text, words = self._rendered(request, template)
        if request.clip_text is not None:
            words = request.clip_text
        for written in (text, words):
            check_characters(written, "the question")
        self.engine.check(request.generation)
        stop = dict.fromkeys(filter(None, (*request.generation.stop, template.ends[1])))
        return _Prompt(
            text=text,
            clip_text=words,
            images=request.images,
            reducer=self._reducer(request),
            generation=replace(request.generation, stop=tuple(stop)),
        )

    def _reducer(self, request: Request) -> Reducer:
        """Return the reducer of a request, or else the model's."""
        reducer = request.token_reduction
        assert not isinstance(reducer, str)  # the request has read it
        return self.encoder.reducer if reducer is None else reducer

    def _rendered(self, request: Request, template: Conversation) -> tuple[str, str]:
        """Return the prompt and the words of the newest question.

        Raises:
            UserError: See `render`.
        """
        if request.prompt is not None:
            _check_placeholders(request.prompt, request.images, "the prompt")
            needs_question = (
                bool(request.images) and request.clip_text is None and reads_question(self._reducer(request))
            )
            words = user_turns(request.prompt)[-1] if needs_question else ""
            # Whoever rendered it, such as a web page, need not know what this model expects around an image.
            return self._wrapped(request.prompt, template), words
        conversation = template.copy()
        words = ""
        for message in request.messages:
            # Nobody else shows images, and what a model wrote may be anything.
            text = _without_placeholders(message.text)
            if message.role == "system":
                conversation.system = text
            elif message.role == "assistant":
                conversation.append_message(conversation.roles[1], text)
            else:
                conversation.append_message(conversation.roles[0], self._with_placeholders(message, template))
                words = clip_text(message.text)
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt(), words

    def _with_placeholders(self, message: Message, template: Conversation) -> str:
        """Put placeholders in front of a user's message that has images and none.

        Raises:
            UserError: If the message is empty, or its placeholders are not as many as its images.
        """
        text = message.text
        if not clip_text(text):
            raise UserError("the question is empty; ask something")
        if DEFAULT_IMAGE_TOKEN not in text:
            text = f"{DEFAULT_IMAGE_TOKEN}\n" * len(message.images) + text
        _check_placeholders(text, message.images, "the question")
        return self._wrapped(text, template)

    def _wrapped(self, text: str, template: Conversation) -> str:
        """Put around the placeholders of a text what model and template expect there."""
        uses_start_end = bool(getattr(self.model.config, "mm_use_im_start_end", False))
        return wrap_image_tokens(text, template, uses_start_end)

    def _prepare_reducers(self, jobs: Sequence[_Job]) -> None:
        """Load what the reducers of jobs need; a job whose reducer this tower cannot serve fails."""
        for job in jobs:
            try:
                if job.prompt is not None and job.prompt.images:
                    self.encoder.tower.prepare(job.prompt.reducer)
            except UserError as error:
                job.fail(error)

    def _read_images(self, jobs: Sequence[_Job], wanted: frozenset[Signal]) -> dict[Hashable, _ReadImage]:
        """Read the images of jobs, each once; a job of which one cannot be read fails.

        Returns:
            By the `_source_key` of their sources.
        """
        asking = [(job, job.prompt) for job in jobs if job.prompt is not None and job.result is None]
        sources = {_source_key(source): source for _, prompt in asking for source in prompt.images}
        # Decoding and resizing are done outside of Python, so threads do several at once.
        read = partial(self._read_image, wanted=wanted)
        with ThreadPoolExecutor(min(len(sources), IMAGES_AT_ONCE) or 1) as pool:
            found = dict(zip(sources, pool.map(read, sources.values()), strict=True))
        for job, prompt in asking:
            try:
                for source in prompt.images:
                    if isinstance(error := found[_source_key(source)], UserError):
                        raise error
            except UserError as error:
                job.fail(error)
        return {key: image for key, image in found.items() if isinstance(image, _ReadImage)}

    def _read_image(self, source: ImageSource, wanted: frozenset[Signal]) -> _ReadImage | UserError:
        """Read an image and, unless it is kept encoded with all that is wanted of it, turn it into pixels.

        Returns:
            The image, or the error.
        """
        try:
            image = read_image(source)
            key = (self._seen_as(), content_key(image))
            encoded = self.features.get(key)
            if encoded is not None and not wanted <= encoded.signals.keys():
                encoded = None
            pixels = self.encoder.preprocess(image) if encoded is None else None
            return _ReadImage(key, image.size, pixels, encoded)
        except UserError as error:
            return error

    def _seen_as(self) -> Hashable:
        """Return what the features of an image depend on beside its content."""
        config, tower = self.encoder.config, self.encoder.tower
        cropping = [getattr(config, name, None) for name in ("image_aspect_ratio", "image_grid_pinpoints")]
        return tower.device, tower.dtype, str(cropping)

    def clear_caches(self) -> None:
        """Forget what was computed for earlier requests; to be called when weights have been changed."""
        self.features.clear()
        self.engine.clear_prefixes()
        if self.model.get_vision_tower() is not None:
            self.encoder.tower.clear_text_cache()
            self.encoder.tower.clear_recordings()

    def _encode_images(
        self, images: Collection[_ReadImage], wanted: frozenset[Signal]
    ) -> dict[Hashable, EncodedImage]:
        """Return images by their keys; the vision encoder runs over those that are not encoded, each once."""
        fresh = {image.key: image for image in images if image.pixels is not None}
        made = self.encoder.encode(
            [image.pixels for image in fresh.values() if image.pixels is not None],
            [image.size for image in fresh.values()],
            wanted,
        )
        for key, encoded in zip(fresh, made, strict=True):
            self.features.add(key, encoded)
        kept = {image.key: image.encoded for image in images if image.encoded is not None}
        return kept | dict(zip(fresh, made, strict=True))

    def _encode(self, jobs: Sequence[_Job]) -> None:
        """Encode the images of jobs, each once, and reduce them for each job's question."""
        watch = Stopwatch(self.encoder.device)
        self._prepare_reducers(jobs)
        wanted = signals_of(job.prompt.reducer for job in jobs if job.prompt and job.result is None)
        read = self._read_images(jobs, wanted)
        encoded = self._encode_images(read.values(), wanted)
        asking = [job for job in jobs if job.result is None and job.prompt and job.prompt.images]
        vision_ms = watch.lap()
        own = [
            [encoded[read[_source_key(source)].key] for source in job.prompt.images]
            for job in asking
            if job.prompt
        ]
        prompts = [job.prompt for job in asking if job.prompt for _ in job.prompt.images]
        reduced = iter(
            self.encoder.reduce(
                [image for images in own for image in images],
                [prompt.clip_text for prompt in prompts],
                [prompt.reducer for prompt in prompts],
            )
        )
        for job, images in zip(asking, own, strict=True):
            job.patches = sum(image.patches.shape[0] * image.patches.shape[1] for image in images)
            job.images = list(islice(reduced, len(images)))
            job.kept = self._kept(job.images)
        reduction_ms = watch.lap()
        for job in asking:
            job.vision_ms, job.reduction_ms = vision_ms / len(asking), reduction_ms / len(asking)

    def _kept(self, images: Sequence[ReducedImage]) -> tuple[Tensor, ...]:
        """Return which patches of each whole image stayed, bool (rows, columns)."""
        side = self.encoder.tower.num_patches_per_side
        # The first crop is the whole image; a CLS token in front of its patches has no place on it.
        return tuple(image.crops.kept[0, -side * side :].reshape(side, side) for image in images)

    def _submit(self, jobs: Sequence[_Job]) -> None:
        """Embed prompts and hand them to the engine; one that is too long fails."""
        watch = Stopwatch(self.encoder.device)
        projected = iter(self.encoder.project([image for job in jobs for image in job.images]))
        fitting: list[tuple[_Job, Tensor, list[Tensor]]] = []
        for job in jobs:
            assert job.prompt is not None
            images = list(islice(projected, len(job.images)))
            ids = torch.tensor(tokenizer_image_token(job.prompt.text, self.tokenizer))
            job.visual_tokens = sum(map(len, images))
            try:
                room = self._room_behind(len(ids) - len(images) + job.visual_tokens)
                job.prompt = replace(job.prompt, generation=job.prompt.generation.within(room))
                fitting.append((job, ids, images))
            except UserError as error:
                job.fail(error)
        if not fitting:
            return
        embedded = self.encoder.embed([ids for _, ids, _ in fitting], [images for *_, images in fitting])
        milliseconds = watch.lap() / len(fitting)
        for (job, ids, _), embeddings in zip(fitting, embedded, strict=True):
            assert job.prompt is not None
            job.images = ()
            job.prefill_ms = milliseconds
            job.engine_id = self.router.submit(embeddings, job.prompt.generation, _text_in_front(ids))

    def _room_behind(self, length: int) -> int:
        """Return how many tokens an answer to a prompt of this length may have.

        Raises:
            PromptTooLongError: If it has no room for one, so that the model would have to cut the prompt.
        """
        config = self.model.config
        own = getattr(config, "tokenizer_model_max_length", None)
        limits = (own, config.max_position_embeddings, self.engine.max_length)
        limit = min(limit for limit in limits if limit)
        if length >= limit:
            raise PromptTooLongError(
                f"the prompt has {length} tokens with its images and this model reads at most {limit - 1}; "
                "ask something shorter or reduce the images further"
            )
        return limit - length


def _without_placeholders(text: str) -> str:
    """Return a text without ``<image>``, also such as appears only once another one is taken out."""
    while DEFAULT_IMAGE_TOKEN in text:
        text = text.replace(DEFAULT_IMAGE_TOKEN, "")
    return text


def _check_placeholders(text: str, images: Sequence[ImageSource], name: str) -> None:
    """Refuse a text whose placeholders are not as many as its images."""
    placeholders = text.count(DEFAULT_IMAGE_TOKEN)
    if placeholders != len(images):
        raise UserError(f"{placeholders} <image> placeholders in {name}, {len(images)} images given")


def _text_in_front(ids: Tensor) -> tuple[int, ...]:
    """Return the ids of a prompt (L,) before its first image, which a template makes; none without images."""
    images = (ids == IMAGE_TOKEN_INDEX).nonzero()
    return tuple(ids[: int(images[0])].tolist()) if len(images) else ()


def _source_key(source: ImageSource) -> Hashable:
    """Tell images apart: files by name, everything else by identity."""
    return str(source) if isinstance(source, str | Path) else id(source)


class Chat:
    """A conversation; each turn reduces the images anew for its question, the vision encoder runs once.

    Args:
        assistant: Answers.
        images: Of the first turn.

    Attributes:
        answers: All so far.
        token_reduction: Setting for the next turns; None for the model's.
        prompt: The last turn's, as the model reads it.
        template: Name of a conversation template for the next turns; None for the model's.
        messages: Of user and assistant by turns, so far.
    """

    def __init__(self, assistant: Assistant, images: tuple[ImageSource, ...] = ()) -> None:
        self.answers: list[Answer] = []
        self.token_reduction: str | None = None
        self.prompt = ""
        self._assistant = assistant
        self.template: str | None = None
        self.messages: tuple[Message, ...] = ()
        self._images: tuple[ImageSource, ...] = images

    @property
    def roles(self) -> tuple[str, str]:
        """What the template calls the user and the model."""
        return self._assistant.template.roles

    def ask(self, text: str, *images: ImageSource, generation: Generation | None = None) -> Answer:
        """Answer the next question, maybe about further images.

        Raises:
            UserError: If the question is empty, too long, or names images that are not there.
        """
        for _ in self.stream(text, *images, generation=generation):
            pass
        return self.answers[-1]

    def stream(self, text: str, *images: ImageSource, generation: Generation | None = None) -> Iterator[str]:
        """Answer the next question piece by piece; a turn that is given up or fails leaves no trace.

        Raises:
            UserError: As `ask` does.
        """
        # Read once: a file may change while the conversation goes on.
        message = Message("user", text, tuple(map(read_image, (*self._images, *images))))
        yield from self._continue((*self.messages, message), generation)
        self._images = ()  # from now on they belong to the first turn

    def regenerate(self, generation: Generation | None = None) -> Iterator[str]:
        """Answer the last question anew, piece by piece; if that is given up or fails, its answer stays.

        Raises:
            UserError: If nothing was asked yet, or as `ask` does.
        """
        if not self.messages:
            raise UserError("there is no answer to give anew; ask something first")
        yield from self._continue(self.messages[:-1], generation)

    def _continue(self, messages: tuple[Message, ...], generation: Generation | None) -> Iterator[str]:
        request = Request(
            messages, self.token_reduction, generation=generation or Generation(), template=self.template
        )
        self.prompt = self._assistant.render(request)
        answer = yield from self._assistant.stream(request)
        self.messages = (*request.messages, Message("assistant", answer.text))
        self.answers[len(request.messages) // 2 :] = [answer]


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
