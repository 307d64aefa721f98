"""The language model in vLLM, which gets prompts as embeddings; what makes these stays in this process.

Shapes: L positions of a prompt, H width of the language model.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from multiprocessing import active_children, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llava.engine.answer_text import AnswerText
from llava.engine.base import Event, Generation
from llava.engine.requests import RequestQueue, RunningAnswer, WaitingRequest, seed_of
from llava.errors import UserError
from llava.internals import waiting_queue
from llava.model.loading import LoadedModel, context_length_of, load_prompt_model
from llava.model.placement import Placement
from llava.model.prompt_model import LlavaPromptModel
from llava.model.split import split_language_model

MISSING = (
    "--engine vllm needs vLLM, which has an environment of its own because it pins other libraries: "
    "pip install 'llava[vllm]' there (docs/serving.md)"
)
DEATH = "vLLM's process has ended"
# What the user of a command expects of vLLM where nothing else is said: nothing on the standard output, which
# belongs to answers, and nothing sent to anybody.
ENVIRONMENT = {
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a copy of a process with threads may hang
}
# Of each device, where vLLM's own default leaves little to the vision tower in this process.
MEMORY_SHARE = 0.8
HIGHEST_TEMPERATURE = 2


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """How vLLM runs.

    Attributes:
        tensor_parallel_size: Devices that share each layer.
        more: Others of vLLM's engine arguments, by name.
    """

    tensor_parallel_size: int = 1
    more: Mapping[str, Any] = field(default_factory=dict)


def load_with_vllm(
    options: VllmOptions,
    model_path: str,
    model_base: str | None,
    placement: Placement,
    *,
    vision_tower: str | None = None,
    token_reduction: str | None = None,
) -> tuple[LoadedModel[LlavaPromptModel], VllmEngine]:
    """Load what embeds a checkpoint's prompts here, and its language model in vLLM.

    Args:
        options: How vLLM runs.
        model_path: See `load_checkpoint`.
        model_base: See there.
        placement: Of what is loaded here; vLLM has the same dtype, and devices of its own choice.
        vision_tower: See there.
        token_reduction: See there.

    Raises:
        UserError: If vLLM is not installed, does not start, or cannot do what is asked.
    """
    if find_spec("vllm") is None:
        raise UserError(MISSING)
    if placement.quantization is not None:
        raise UserError(
            "--load-8bit and --load-4bit are for --engine transformers; vLLM has its own quantization, for "
            "example --vllm-option quantization=fp8"
        )
    model = load_prompt_model(
        model_path, model_base, placement, vision_tower=vision_tower, token_reduction=token_reduction
    )
    folder = split_language_model(model_path, model_base, model.config.vocab_size, placement.dtype)
    assert model.tokenizer is not None
    engine = VllmEngine(folder, placement.dtype, model.tokenizer, model.generation_config, options)
    tower = model.get_vision_tower()
    processor = None if tower is None else tower.image_processor
    return LoadedModel(model.tokenizer, model, processor, context_length_of(model.config)), engine


class VllmEngine(RequestQueue):
    """Lets vLLM batch requests; text is made of the tokens here, as in every engine.

    vLLM's scheduler and workers are processes of their own, which work while nobody waits here.

    Args:
        folder: A plain Llama, such as `split_language_model` writes.
        dtype: In which vLLM computes.
        tokenizer: Of the language model.
        generation_config: Of the checkpoint.
        options: How vLLM runs.

    Raises:
        UserError: If vLLM does not start, or knows no option of a given name.
    """

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        tokenizer: PreTrainedTokenizerBase,
        generation_config: Any,
        options: VllmOptions,
    ) -> None:
        before = set(active_children())
        self._vllm = _start(folder, dtype, options)
        self._has_died = threading.Event()
        self._guard = self._watch(set(active_children()) - before)
        from vllm import __version__

        # The folder's name stands for its weights.
        settings = {"engine": f"vllm {__version__}", "language_model": folder.name, **asdict(options)}
        super().__init__(
            tokenizer, generation_config, settings, max_length=self._vllm.model_config.max_model_len
        )
        self._running: dict[str, RunningAnswer] = {}  # by vLLM's id
        self._stepping = threading.Lock()  # vLLM is used by one thread at a time
        self._ended: list[Event] = []  # what the next step has to tell

    def check(self, generation: Generation) -> None:
        """Refuse what vLLM does otherwise than the transformers engine; see `Engine.check`."""
        refused = {
            "num_beams": (generation.num_beams > 1, "has no beam search"),
            # It counts a prompt's tokens, and embeddings are none.
            "repetition_penalty": (generation.repetition_penalty != 1, "has none for embedded prompts"),
            "temperature": (
                generation.temperature > HIGHEST_TEMPERATURE,
                f"accepts {HIGHEST_TEMPERATURE} or less",
            ),
        }
        for name, (is_refused, words) in refused.items():
            if is_refused:
                value = getattr(generation, name)
                raise UserError(f"{name} is {value}; vLLM {words}: use --engine transformers")

    def cancel(self, request: int) -> None:
        """End a request; see `Engine.cancel`. vLLM would go on with it, even if nobody steps."""
        super().cancel(request)
        self._drop_cancelled()

    def clear(self) -> None:
        """Forget all requests; see `Engine.clear`."""
        super().clear()
        with self._stepping:
            self._ended.clear()
            self._forget(list(self._running))

    def step(self) -> list[Event]:
        """Hand over what has come and wait for the next tokens; see `Engine.step`.

        Raises:
            RuntimeError: If vLLM's process has ended.
        """
        self._drop_cancelled()
        with self._stepping:
            if self._has_died.is_set():
                raise RuntimeError(DEATH)
            for request in self._take_waiting():
                self._add(request)
            events, self._ended = self._ended, []
            if self._running:
                events += self._wait()
        self._drop_cancelled()  # by a thread that had to leave it to this one
        return events

    def _drop_cancelled(self) -> None:
        """End what was cancelled, unless a step is running, at whose end it will be."""
        if not self._stepping.acquire(blocking=False):
            return
        try:
            cancelled = self._take_cancelled([answer.id for answer in self._running.values()])
            self._forget([str(request) for request in cancelled if str(request) in self._running])
            self._ended += [Event(request, finished="cancelled") for request in cancelled]
        finally:
            self._stepping.release()

    def _wait(self) -> list[Event]:
        """Wait until vLLM has done something, and say what."""
        started = time.perf_counter()
        outputs = [one for one in self._vllm.step() if one.request_id in self._running]
        share = (time.perf_counter() - started) * 1000 / max(1, len(outputs))
        return [event for output in outputs for event in self._read(output, share)]

    def _add(self, request: WaitingRequest) -> None:
        """Begin the answer of a request."""
        generation, ends = request.generation, self._ends_of(request.generation)
        name, text = str(request.id), AnswerText(self.tokenizer, generation.stop)
        # In the memory of this machine, by which it goes to another process.
        prompt = {"prompt_embeds": request.embeddings.detach().cpu()}
        self._vllm.add_request(name, prompt, _sampling(generation, sorted(ends)))
        self._running[name] = RunningAnswer(request.id, generation, text, ends)

    def _read(self, output: Any, milliseconds: float) -> Iterator[Event]:
        """Turn what vLLM has done for a request into events."""
        answer, (completion,) = self._running[output.request_id], output.outputs
        event = None
        for token in completion.token_ids:
            event = answer.advance(token, milliseconds)
            yield event
            milliseconds = 0.0
            if event.finished:
                break
        if event is None or not event.finished:
            if not output.finished:
                return
            yield answer.end("length", milliseconds)  # where vLLM's own limit is
        if output.finished:
            del self._running[output.request_id]
        else:
            self._forget([output.request_id])  # a text has ended it

    def _forget(self, names: list[str]) -> None:
        """Free what vLLM holds of requests that are to end."""
        for name in names:
            del self._running[name]
        if names and not self._has_died.is_set():
            self._vllm.abort_request(names)

    def _watch(self, processes: Collection[BaseProcess]) -> subprocess.Popen[bytes]:
        """Let vLLM's processes end with this one, and who waits for them hear of it when they end before."""
        died, waiting = self._has_died, waiting_queue(self._vllm)

        def tell() -> None:
            wait([process.sentinel for process in processes])
            died.set()
            waiting.put(RuntimeError(DEATH))

        threading.Thread(target=tell, name="vllm-watch", daemon=True).start()
        return end_with_this_process(process.pid for process in processes if process.pid is not None)


def _sampling(generation: Generation, ends: list[int]) -> Any:
    """Return vLLM's settings for a request: tokens that end it are told, texts are looked for here."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling: dict[str, Any] = {"temperature": 0.0}
    if generation.samples:
        sampling = {
            "temperature": generation.temperature,
            "top_p": generation.top_p or 1.0,
            "seed": seed_of(generation),
        }
    return SamplingParams(
        max_tokens=generation.max_new_tokens,
        min_tokens=generation.min_new_tokens,
        stop_token_ids=ends,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        **sampling,
    )


def _start(folder: Path, dtype: torch.dtype, options: VllmOptions) -> Any:
    """Start vLLM's engine."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = {
        "model": str(folder),
        "dtype": str(dtype).removeprefix("torch."),
        "tensor_parallel_size": options.tensor_parallel_size,
        "gpu_memory_utilization": MEMORY_SHARE,
        "enable_prompt_embeds": True,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **options.more,
    }
    try:
        with _interrupting_this_process_only():
            return LLMEngine.from_engine_args(EngineArgs(**arguments), enable_multiprocessing=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"vLLM did not start: {reason[:300]}; what it says above tells more") from error


@contextmanager
def _interrupting_this_process_only() -> Iterator[None]:
    """Keep Ctrl-C from processes that are started here, which a terminal sends to all of them.

    Answers that run may end before the engine does. What is blocked in a thread is so in its children.
    """
    resource_tracker.ensure_running()  # a child too, whose start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# Reads until the process that has started it closes the pipe, or ends in whatever way.
GUARD = """
import contextlib, os, signal, sys
sys.stdin.read()
for process in sys.argv[1:]:
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(process), signal.SIGTERM)
"""


def end_with_this_process(processes: Iterable[int]) -> subprocess.Popen[bytes]:
    """Let processes end with this one even if it is killed: vLLM's would stay, and keep a GPU's memory.

    Args:
        processes: Their ids.

    Returns:
        The process that sees to it.
    """
    command = [sys.executable, "-I", "-c", GUARD, *map(str, processes)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
