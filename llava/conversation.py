"""Conversation templates and the one renderer that gives prompt, loss mask and the text CLIP sees."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_PLACEHOLDER,
)
from llava.errors import UserError, shown

IMAGE_TAGS = ("<Image>", "</Image>")
"""What the ``mmtag`` templates write around the image placeholder."""

_NOT_WORDS = (
    DEFAULT_IMAGE_TOKEN,
    IMAGE_PLACEHOLDER,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IM_END_TOKEN,
    *IMAGE_TAGS,
)


class SeparatorStyle(Enum):
    """How a template joins system prompt, roles and turns."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendered conversation.

    Attributes:
        text: The characters; the segments of a conversation joined are its prompt.
        supervised: Whether it enters the loss: an answer with the space before it and its end marker.
    """

    text: str
    supervised: bool


@dataclass
class Conversation:
    """A template and the turns said so far.

    Attributes:
        system: Text in front of the first turn.
        roles: Name or marker of the user and of the assistant.
        messages: Turns as ``[role, text]``; an empty text or ``None`` is a turn still to be written. A text
            may also be LLaVA's tuple (text, image, process mode).
        offset: Number of leading messages that are examples of the template, not turns of a user.
        sep_style: How the parts are joined.
        sep: Separator after the system prompt and after the user's turns (or all turns).
        sep2: Separator after the assistant's turns, where it differs.
        version: LLaVA's family name of the template; several templates share one.
        skip_next: LLaVA's mark of a turn that a server refused.
    """

    system: str
    roles: tuple[str, str]
    messages: list[list[Any]] = field(default_factory=list)
    offset: int = 0
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    skip_next: bool = False

    def get_prompt(self) -> str:
        """Render the conversation as the text that is tokenized.

        Raises:
            ValueError: If a Llama-2 template does not begin with a turn of the user.
        """
        return "".join(segment.text for segment in self.segments())

    def segments(self) -> list[Segment]:
        """Render the conversation piece by piece; see `get_prompt` for the errors."""
        return [segment for segment in _RENDERERS[self.sep_style](self, self._texts()) if segment.text]

    def append_message(self, role: str, message: Any) -> None:
        """Add a turn; ``None`` leaves it for the model to write."""
        self.messages.append([role, message])

    def copy(self) -> Conversation:
        """Return a conversation that can be continued without changing this one."""
        return replace(self, messages=[list(message) for message in self.messages])

    def dict(self) -> dict[str, Any]:
        """Return LLaVA's JSON form; images are left out."""
        messages = [[role, text[0] if isinstance(text, tuple) else text] for role, text in self.messages]
        return {
            "system": self.system,
            "roles": self.roles,
            "messages": messages,
            "offset": self.offset,
            "sep": self.sep,
            "sep2": self.sep2,
        }

    def get_images(self, return_pil: bool = False) -> list[Any]:
        """Return the images of the user's turns: files in base64, or the images themselves."""
        from llava.conversation_images import images_of

        return images_of(self, return_pil)

    def to_gradio_chatbot(self) -> list[list[str | None]]:
        """Return pairs of question and answer for a page of gradio, images as HTML."""
        from llava.conversation_images import to_chatbot

        return to_chatbot(self)

    def process_image(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare an image for a worker; see `llava.conversation_images.process_image`."""
        from llava.conversation_images import process_image

        return process_image(*args, **kwargs)

    @property
    def ends(self) -> tuple[str, str]:
        """What closes a turn of the user and of the assistant."""
        return self.sep, self.sep if self.sep2 is None else self.sep2

    def _texts(self) -> list[tuple[str, str]]:
        """Return role and text of every turn, with images turned into placeholders."""
        turns = [(role, text[0] if isinstance(text, tuple) else text or "") for role, text in self.messages]
        if not self.messages or not isinstance(self.messages[0][1], tuple):
            return turns
        role, text = turns[0]
        if "mmtag" in self.version:
            text = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
            shown = [(self.roles[0], DEFAULT_IMAGE_TOKEN.join(IMAGE_TAGS)), (self.roles[1], "Received.")]
            return [*shown, (role, text), *turns[1:]]
        return [(role, f"{DEFAULT_IMAGE_TOKEN}\n{text.replace(DEFAULT_IMAGE_TOKEN, '').strip()}"), *turns[1:]]


Turns = Sequence[tuple[str, str]]


def _render_named(conversation: Conversation, turns: Turns) -> Iterator[Segment]:
    """SINGLE and TWO: ``role: text`` and a separator. The space after the colon belongs to the text."""
    yield Segment(conversation.system + conversation.sep, supervised=False)
    for index, (role, text) in enumerate(turns):
        yield Segment(f"{role}:", supervised=False)
        if text:
            yield Segment(f" {text}{conversation.ends[index % 2]}", supervised=role == conversation.roles[1])


def _render_marked(conversation: Conversation, turns: Turns) -> Iterator[Segment]:
    """MPT: roles are markers that bring their own line break."""
    yield Segment(conversation.system + conversation.sep, supervised=False)
    for role, text in turns:
        yield Segment(role, supervised=False)
        if text:
            yield Segment(text + conversation.sep, supervised=role == conversation.roles[1])


def _render_llama_2(conversation: Conversation, turns: Turns) -> Iterator[Segment]:
    """LLAMA_2: instructions in brackets, the system prompt inside the first."""
    if turns and (not turns[0][1] or turns[0][0] != conversation.roles[0]):
        raise ValueError(
            f"a Llama-2 prompt begins with a turn of {conversation.roles[0]!r}, got {turns[0]!r}"
        )
    for index, (role, text) in enumerate(turns):
        if not text:
            continue
        if role == conversation.roles[1]:
            yield Segment(f" {text} {conversation.ends[1]}", supervised=True)
            continue
        if index == 0 and conversation.system:
            head = f"[INST] <<SYS>>\n{conversation.system}\n<</SYS>>\n\n"
        else:
            # The first separator is BOS, which the tokenizer adds itself.
            head = f"{conversation.sep if index else ''}[INST] "
        yield Segment(f"{head}{text} [/INST]", supervised=False)


def _render_plain(conversation: Conversation, turns: Turns) -> Iterator[Segment]:
    """PLAIN: nothing but the texts."""
    yield Segment(conversation.system, supervised=False)
    for index, (_, text) in enumerate(turns):
        if text:
            yield Segment(text + conversation.ends[index % 2], supervised=index % 2 == 1)


_RENDERERS = {
    SeparatorStyle.SINGLE: _render_named,
    SeparatorStyle.TWO: _render_named,
    SeparatorStyle.MPT: _render_marked,
    SeparatorStyle.LLAMA_2: _render_llama_2,
    SeparatorStyle.PLAIN: _render_plain,
}


def clip_text(message: str) -> str:
    """Turn a user's message into the text CLIP sees: its words, without image placeholders, stripped.

    Training, evaluation and serving all come through here, so that they score patches by the same text.

    Args:
        message: A turn of the user, with or without placeholders.
    """
    for token in _NOT_WORDS:
        message = message.replace(token, "")
    return message.strip()


def wrap_image_tokens(message: str, template: Conversation, mm_use_im_start_end: bool) -> str:
    """Write around every image placeholder of a message what template and model expect there.

    Training and asking both come through here, so that a model is asked with the prompt it was trained on.

    Args:
        message: A turn of the user; placeholders that are already wrapped stay as they are.
        template: The ``mmtag`` templates put `IMAGE_TAGS` around an image.
        mm_use_im_start_end: The model's setting of this name: its own start and end tokens around an image.
    """
    image = DEFAULT_IMAGE_TOKEN
    if mm_use_im_start_end:
        image = f"{DEFAULT_IM_START_TOKEN}{image}{DEFAULT_IM_END_TOKEN}"
    if "mmtag" in template.version:
        image = image.join(IMAGE_TAGS)
    return message.replace(image, DEFAULT_IMAGE_TOKEN).replace(DEFAULT_IMAGE_TOKEN, image)


def user_turns(prompt: str) -> list[str]:
    """Recover what the user said from a rendered prompt, for callers that hand over nothing else.

    Any template of `conv_templates` is recognized by its system prompt or, failing that, by its roles and
    separators, which must still be in the text; also one that a caller has added there.

    Args:
        prompt: A prompt of such a template, whose last answer may still be open, or a question alone.

    Returns:
        The words of each human turn as `clip_text` gives them, at least one entry.

    Raises:
        UserError: If there are no such words, or the prompt is one of an unknown template.
    """
    prompt = prompt.removeprefix("<s>").lstrip()
    templates = sorted(
        conv_templates.values(),
        key=lambda template: (not _opens(prompt, template), not _is_marked(prompt, template)),
    )
    for template in templates:
        if find := _TURN_FINDERS.get(template.sep_style):
            turns = find(prompt.removeprefix(template.system) if template.system else prompt, template)
            if words := [text for turn in turns if (text := clip_text(turn))]:
                return words
    is_question = not (_opens(prompt, templates[0]) or _OF_A_TEMPLATE.search(prompt))
    if is_question and clip_text(prompt):
        return [clip_text(prompt)]
    raise UserError(
        f"no question of the user is found in the prompt {prompt[-200:]!r}, by which patches are chosen: "
        "either it has no words, or its template is none of conv_templates; then hand the question over as "
        "texts"
    )


# What only a template writes: markers such as <|im_start|>, or two names with colons, the second at the end,
# where an answer is to follow.
_OF_A_TEMPLATE = re.compile(r"<\|\w+\|>|\b\w+:\s.*\W\w+:\s*$", re.DOTALL)


# What prompts of these styles begin with, whatever their system prompt.
_FIRST_MARKERS = {SeparatorStyle.LLAMA_2: "[INST]", SeparatorStyle.MPT: "<|im_start|>"}


def _is_marked(prompt: str, template: Conversation) -> bool:
    """Tell whether a prompt begins with a marker that no other style has."""
    marker = _FIRST_MARKERS.get(template.sep_style)
    return marker is not None and prompt.startswith(marker)


def _opens(prompt: str, template: Conversation) -> bool:
    """Tell whether a prompt begins as those of a template do."""
    return bool(template.system) and prompt.startswith(template.system + template.sep)


def _named_turns(prompt: str, template: Conversation) -> list[str]:
    """Find the user's turns of a TWO prompt.

    A question may itself contain the assistant's name: in a round still open the last one is the marker, in a
    round with an answer the first.
    """
    user, assistant = template.roles
    turns = []
    for turn in prompt.split(template.ends[1]):
        _, marker, rest = turn.partition(f"{user}:")
        question = rest.rstrip().removesuffix(f"{assistant}:")
        if marker:
            is_open = question != rest.rstrip()
            turns.append(question if is_open else rest.split(f"{template.sep}{assistant}:")[0])
    return turns


def _single_turns(prompt: str, template: Conversation) -> list[str]:
    """Find the user's turns of a SINGLE prompt."""
    user, assistant = (re.escape(f"{template.sep}{role}:") for role in template.roles)
    return re.findall(rf"{user}(.*?)(?:{assistant}|$)", prompt, flags=re.DOTALL)


def _marked_turns(prompt: str, template: Conversation) -> list[str]:
    """Find the user's turns of an MPT prompt."""
    user, end = re.escape(template.roles[0]), re.escape(template.sep)
    return re.findall(rf"{user}(.*?){end}", prompt, flags=re.DOTALL)


def _bracketed_turns(prompt: str, _: Conversation) -> list[str]:
    """Find the instructions of a LLAMA_2 prompt; its system prompt stands inside the first."""
    turns = re.findall(r"\[INST\](.*?)\[/INST\]", prompt, flags=re.DOTALL)
    return [re.sub(r"^\s*<<SYS>>.*?<</SYS>>", "", turn, flags=re.DOTALL) for turn in turns]


_TURN_FINDERS = {
    SeparatorStyle.MPT: _marked_turns,
    SeparatorStyle.LLAMA_2: _bracketed_turns,
    SeparatorStyle.SINGLE: _single_turns,
    SeparatorStyle.TWO: _named_turns,
}

_FOR_A_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_FOR_A_HUMAN = _FOR_A_USER.replace("user", "human")
# The missing space before the second "The" is part of the published template.
_WITH_IMAGE_TAGS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_LANGUAGE_AND_VISION = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
# Meta's default for Llama-2-chat; the two spaces after "safe." are theirs.
_META_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. "
    "Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal "
    "content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, "
    "explain why instead of answering something not correct. "
    "If you don't know the answer to a question, please don't share false information."
)
_CHATML_ROLES = ("<|im_start|>user\n", "<|im_start|>assistant\n")

# LLaVA shows the model an exchange of two turns here; the wording of this one is our own.
_EXAMPLE = [
    ["Human", "Why does the sky look blue by day and red at sunset?"],
    [
        "Assistant",
        "Air scatters blue light more strongly than red light. By day the scattered blue reaches us from "
        "every direction. At sunset the light crosses much more air, most of the blue is lost on the way, "
        "and red is left.",
    ],
]

_v0 = Conversation(_FOR_A_HUMAN, ("Human", "Assistant"), _EXAMPLE, offset=2)
_vicuna_v1 = Conversation(
    _FOR_A_USER, ("USER", "ASSISTANT"), sep_style=SeparatorStyle.TWO, sep=" ", sep2="</s>", version="v1"
)
_llama_2 = Conversation(
    _META_LLAMA_2,
    ("USER", "ASSISTANT"),
    sep_style=SeparatorStyle.LLAMA_2,
    sep="<s>",
    sep2="</s>",
    version="llama_v2",
)
_mpt = Conversation(
    "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers.",
    _CHATML_ROLES,
    sep_style=SeparatorStyle.MPT,
    sep="<|im_end|>",
    version="mpt",
)
_chatml_direct = replace(_mpt, system="<|im_start|>system\nAnswer the questions.", messages=[])
_plain = Conversation("", ("", ""), sep_style=SeparatorStyle.PLAIN, sep="\n")
_llava_v0 = replace(_v0, messages=[], offset=0)
_llava_v1 = replace(_vicuna_v1, system=_FOR_A_HUMAN, messages=[])

conv_templates: dict[str, Conversation] = {
    "default": _v0,
    "v0": _v0,
    "v1": _vicuna_v1,
    "vicuna_v1": _vicuna_v1,
    "llama_2": _llama_2,
    "mistral_instruct": replace(_llama_2, system="", sep="", messages=[]),
    "chatml_direct": _chatml_direct,
    "mistral_direct": _chatml_direct,
    "plain": _plain,
    "v0_plain": _plain,
    "llava_v0": _llava_v0,
    "v0_mmtag": replace(_llava_v0, system=_WITH_IMAGE_TAGS, version="v0_mmtag", messages=[]),
    "llava_v1": _llava_v1,
    "v1_mmtag": replace(_llava_v1, system=_WITH_IMAGE_TAGS, version="v1_mmtag", messages=[]),
    "llava_llama_2": replace(_llama_2, system=_LANGUAGE_AND_VISION, messages=[]),
    "mpt": _mpt,
}

default_conversation = _vicuna_v1

# The templates under LLaVA's names of their own.
conv_vicuna_v0 = _v0
conv_vicuna_v1 = _vicuna_v1
conv_llama_2 = _llama_2
conv_mistral_instruct = conv_templates["mistral_instruct"]
conv_chatml_direct = _chatml_direct
conv_llava_plain = _plain
conv_llava_v0 = _llava_v0
conv_llava_v0_mmtag = conv_templates["v0_mmtag"]
conv_llava_v1 = _llava_v1
conv_llava_v1_mmtag = conv_templates["v1_mmtag"]
conv_llava_llama_2 = conv_templates["llava_llama_2"]
conv_mpt = _mpt

# LLaVA's choice of a template by a part of the model's name, for checkpoints that do not name one themselves.
TEMPLATE_BY_NAME = {
    "llama-2": "llava_llama_2",
    "mistral": "mistral_instruct",
    "v1.6-34b": "chatml_direct",
    "v1": "llava_v1",
    "mpt": "mpt",
    "v0": "llava_v0",
}
# Where no part is in the name; LLaVA takes llava_v0 then, the template of its first models.
DEFAULT_TEMPLATE = "vicuna_v1"
# Variants for models that expect tags around an image, which LLaVA's web page takes by name.
TEMPLATE_WITH_TAGS = {"llava_v1": "v1_mmtag", "llava_v0": "v0_mmtag", DEFAULT_TEMPLATE: "v0_mmtag"}


def choose_template(configured: str | None, model_name: str) -> str:
    """Return the name of a checkpoint's template: its config's, else what its own name says."""
    if configured:
        return configured
    name = model_name.lower()
    return next((template for part, template in TEMPLATE_BY_NAME.items() if part in name), DEFAULT_TEMPLATE)


def choose_web_template(model_name: str) -> str:
    """Return the name of the template of LLaVA's web page, which tells by a name who expects tags."""
    template, name = choose_template(None, model_name), model_name.lower()
    is_pretrained_only = "plain" in name and "finetune" not in name
    expects_tags = "llava" in name and ("mmtag" in name or is_pretrained_only)
    return TEMPLATE_WITH_TAGS.get(template, template) if expects_tags else template


def find_template(name: str) -> Conversation:
    """Return a conversation template by name.

    Raises:
        UserError: If there is none of this name.
    """
    if name not in conv_templates:
        known = ", ".join(sorted(conv_templates))
        raise UserError(f"{shown(name)} is not a valid conversation template; accepted: {known}")
    return conv_templates[name]
