"""From a record's turns to ids and labels: what is rendered says what is supervised, nothing is counted.

Every template trains on the very prompt that it asks with. (The published code trained ``v0`` on a layout of
its own, with line breaks that its prompts do not have.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX
from llava.conversation import (
    Conversation,
    Segment,
    SeparatorStyle,
    clip_text,
    default_conversation,
    wrap_image_tokens,
)
from llava.errors import UserError
from llava.tokenizer import ids_and_spans

Turn = dict[str, str]
"""``from`` (``human`` or ``gpt``) and ``value``."""

ROLES = ("human", "gpt")


def preprocess_multimodal(
    sources: Sequence[Sequence[Turn]], data_args: Any, template: Conversation = default_conversation
) -> list[list[Turn]]:
    """Move the image placeholder to the front of its turn, once, and wrap it as the model expects.

    Args:
        sources: Conversations; they are left as they are.
        data_args: Anything with LLaVA's ``is_multimodal`` and ``mm_use_im_start_end``.
        template: The template that the turns will be rendered with.
    """
    turns = [[dict(turn) for turn in source] for source in sources]
    if not data_args.is_multimodal:
        return turns
    uses_start_end = getattr(data_args, "mm_use_im_start_end", False)
    for source in turns:
        for turn in source:
            if DEFAULT_IMAGE_TOKEN in turn["value"]:
                words = turn["value"].replace(DEFAULT_IMAGE_TOKEN, "").strip()
                moved = f"{DEFAULT_IMAGE_TOKEN}\n{words}".strip()
                turn["value"] = wrap_image_tokens(moved, template, uses_start_end)
    return turns


def alternating_turns(source: Sequence[Turn]) -> list[Turn]:
    """Drop a first turn of the assistant and make sure that the others alternate.

    Raises:
        UserError: If they do not, or a role is unknown.
    """
    turns = list(source)
    if turns and turns[0]["from"] == ROLES[1]:
        turns = turns[1:]
    for index, turn in enumerate(turns):
        if turn["from"] != ROLES[index % 2]:
            raise UserError(
                f"turn {index} is from {turn['from']!r} where {ROLES[index % 2]!r} should speak; "
                "turns alternate, beginning with 'human'"
            )
    return turns


def render(source: Sequence[Turn], template: Conversation) -> list[Segment]:
    """Render the turns of a record.

    Args:
        source: Turns as `preprocess_multimodal` returns them.
        template: How; its own example turns are left out.

    Returns:
        Segments; joined, their texts are what is tokenized.

    Raises:
        UserError: If the turns do not alternate, or are not an image and its caption for a plain template.
    """
    turns = alternating_turns(source)
    if template.sep_style is SeparatorStyle.PLAIN:
        if len(turns) != 2 or DEFAULT_IMAGE_TOKEN not in turns[0]["value"]:
            raise UserError("a record for --version plain has two turns, <image> and its caption")
        # What the human turn says beside the placeholder is dropped: pretraining maps images to captions.
        return [
            Segment(DEFAULT_IMAGE_TOKEN, supervised=False),
            Segment(turns[1]["value"] + template.sep, supervised=True),
        ]
    conversation = replace(
        template, messages=[[template.roles[index % 2], turn["value"]] for index, turn in enumerate(turns)]
    )
    try:
        return conversation.segments()
    except ValueError as error:
        raise UserError(str(error)) from error


def supervised_tokens(segments: Sequence[Segment], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Mark tokens that lie wholly inside a supervised segment.

    Args:
        segments: The rendered conversation; their texts joined are the tokenized prompt.
        spans: Start and end of every token's characters; empty for tokens that stand for none.
    """
    supervised = [segment.supervised for segment in segments for _ in segment.text]
    return [start < end and all(supervised[start:end]) for start, end in spans]


def tokenize_segments(
    segments: Sequence[Segment], tokenizer: PreTrainedTokenizerBase, has_image: bool
) -> tuple[Tensor, Tensor]:
    """Tokenize a rendered conversation as `tokenizer_image_token` would, with its labels.

    Args:
        segments: The rendered conversation.
        tokenizer: The language model's.
        has_image: Whether ``<image>`` is a placeholder; otherwise it is text like any other.

    Returns:
        Ids (L,) with image sentinels, and labels (L,), ``IGNORE_INDEX`` where nothing is supervised.
    """
    prompt = "".join(segment.text for segment in segments)
    ids, spans = ids_and_spans(prompt, tokenizer, has_images=has_image)
    input_ids = torch.tensor(ids, dtype=torch.long)
    supervised = torch.tensor(supervised_tokens(segments, spans), dtype=torch.bool)
    return input_ids, input_ids.masked_fill(~supervised, IGNORE_INDEX)


def preprocess(
    sources: Sequence[Sequence[Turn]],
    tokenizer: PreTrainedTokenizerBase,
    has_image: bool = False,
    template: Conversation = default_conversation,
) -> dict[str, list[Tensor]]:
    """Turn conversations into ids and labels: answers and their end marks are supervised, nothing else.

    Args:
        sources: Conversations as `preprocess_multimodal` returns them.
        tokenizer: The language model's.
        has_image: Whether ``<image>`` in them stands for an image.
        template: How they are rendered.

    Returns:
        ``input_ids`` and ``labels``, one (L,) tensor per conversation.

    Raises:
        UserError: If a conversation does not fit the template.
    """
    pairs = [tokenize_segments(render(source, template), tokenizer, has_image) for source in sources]
    return {"input_ids": [ids for ids, _ in pairs], "labels": [labels for _, labels in pairs]}


def text_for_clip(source: Sequence[Turn], template: Conversation, text_source: str) -> str | list[str]:
    """Return the text by which the reducer keeps patches of the sample's image.

    Args:
        source: The record's turns.
        template: The template they are trained with.
        text_source: ``questions`` for every human turn by itself, as the model is asked later, or
            ``conversation`` for the rendered whole, as the published code trained.

    Returns:
        One text, or several whose scores are averaged. A record of a plain template has no question: its
        caption says what the image's patches should be kept for.
    """
    turns = alternating_turns(source)
    if text_source == "conversation":
        return "".join(segment.text for segment in render(source, template)).replace(DEFAULT_IMAGE_TOKEN, " ")
    speaker = ROLES[1] if template.sep_style is SeparatorStyle.PLAIN else ROLES[0]
    words = (clip_text(turn["value"]) for turn in turns if turn["from"] == speaker)
    return [text for text in words if text] or [""]
