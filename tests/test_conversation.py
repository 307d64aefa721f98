"""Prompts of every template, their learned segments, and the user's words found back in them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from llava.conversation import (
    DEFAULT_TEMPLATE,
    Conversation,
    SeparatorStyle,
    choose_template,
    choose_web_template,
    clip_text,
    conv_templates,
    default_conversation,
    find_template,
    user_turns,
    wrap_image_tokens,
)
from llava.errors import UserError

TWO_ROUNDS = ["<image>\nWhat is shown?", "A red circle.", "And how many?", "Two."]
SYSTEM_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def conversation(name: str, texts: Sequence[Any]) -> Conversation:
    """Fill a template with alternating turns, beginning with the user."""
    result = conv_templates[name].copy()
    result.messages = []
    for index, text in enumerate(texts):
        result.append_message(result.roles[index % 2], text)
    return result


def test_the_registry_holds_the_published_names():
    assert set(conv_templates) == {
        *(
            "default",
            "v0",
            "v1",
            "vicuna_v1",
            "llama_2",
            "mistral_instruct",
            "chatml_direct",
            "mistral_direct",
        ),
        *("plain", "v0_plain", "llava_v0", "v0_mmtag", "llava_v1", "v1_mmtag", "llava_llama_2", "mpt"),
    }
    assert default_conversation is conv_templates["vicuna_v1"]
    assert conv_templates["default"].offset == len(conv_templates["default"].messages) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "vicuna_v1",
            f"{SYSTEM_USER} USER: <image>\nWhat is shown? ASSISTANT: A red circle.</s>"
            "USER: And how many? ASSISTANT: Two.</s>",
        ),
        (
            "llava_v0",
            f"{SYSTEM_USER.replace('user', 'human')}###Human: <image>\nWhat is shown?"
            "###Assistant: A red circle.###Human: And how many?###Assistant: Two.###",
        ),
        (
            "chatml_direct",
            "<|im_start|>system\nAnswer the questions.<|im_end|>"
            "<|im_start|>user\n<image>\nWhat is shown?<|im_end|>"
            "<|im_start|>assistant\nA red circle.<|im_end|>"
            "<|im_start|>user\nAnd how many?<|im_end|><|im_start|>assistant\nTwo.<|im_end|>",
        ),
        (
            "mistral_instruct",
            "[INST] <image>\nWhat is shown? [/INST] A red circle. </s>[INST] And how many? [/INST] Two. </s>",
        ),
        ("plain", "<image>\nWhat is shown?\nA red circle.\nAnd how many?\nTwo.\n"),
    ],
)
def test_prompts_are_the_published_ones(name: str, expected: str):
    assert conversation(name, TWO_ROUNDS).get_prompt() == expected


def test_llama_2_puts_the_system_prompt_into_the_first_instruction():
    prompt = conversation("llava_llama_2", TWO_ROUNDS).get_prompt()
    assert prompt.startswith("[INST] <<SYS>>\nYou are a helpful language and vision assistant.")
    assert (
        "language.\n<</SYS>>\n\n<image>\nWhat is shown? [/INST] A red circle. </s><s>[INST] And how" in prompt
    )
    with pytest.raises(ValueError, match="begins with a turn of 'USER'"):
        conversation("llama_2", [None]).get_prompt()


def test_an_open_turn_ends_with_the_bare_role():
    assert conversation("v1", ["Q", None]).get_prompt() == f"{SYSTEM_USER} USER: Q ASSISTANT:"
    assert conversation("mpt", ["Q", None]).get_prompt().endswith("Q<|im_end|><|im_start|>assistant\n")
    assert conversation("llama_2", ["Q", None]).get_prompt().endswith("Q [/INST]")


@pytest.mark.parametrize("name", conv_templates)
def test_learned_segments_are_the_answers_with_their_end_marks(name: str):
    filled = conversation(name, TWO_ROUNDS)
    before = (
        " " if filled.sep_style in (SeparatorStyle.SINGLE, SeparatorStyle.TWO, SeparatorStyle.LLAMA_2) else ""
    )
    gap = " " if filled.sep_style is SeparatorStyle.LLAMA_2 else ""
    learned = [segment.text for segment in filled.segments() if segment.supervised]
    assert learned == [f"{before}{answer}{gap}{filled.ends[1]}" for answer in ("A red circle.", "Two.")]
    assert "".join(segment.text for segment in filled.segments()) == filled.get_prompt()


@pytest.mark.parametrize("name", [name for name in conv_templates if "plain" not in name])
@pytest.mark.parametrize("last", ["Two.", None])
def test_the_words_of_the_user_are_found_in_every_template(name: str, last: str | None):
    prompt = conversation(name, [*TWO_ROUNDS[:3], last]).get_prompt()
    assert user_turns(prompt) == ["What is shown?", "And how many?"]


def test_a_question_may_name_the_assistant():
    assert user_turns(conversation("v1", ["Who is the ASSISTANT: you?", None]).get_prompt()) == [
        "Who is the ASSISTANT: you?"
    ]


@pytest.mark.parametrize("name", ["llava_llama_2", "mistral_instruct", "chatml_direct"])
@pytest.mark.parametrize("system", [None, "<|im_start|>system\nBe brief."])
def test_a_question_may_quote_another_template(name: str, system: str | None):
    asked = ["What does the sign USER: say?", "It says USER: no", "And ### Human: or ASSISTANT: yes?", None]
    told = conversation(name, asked)
    if system is not None and name == "chatml_direct":
        told.system = system
    assert user_turns(told.get_prompt()) == asked[::2]


def test_text_without_template_is_taken_whole():
    assert user_turns(" <image>\n What is this? ") == ["What is this?"]
    assert user_turns("Describe the picture:") == ["Describe the picture:"]


@pytest.mark.parametrize("style", ["v1", "v0", "mpt"])
@pytest.mark.parametrize("system", ["You see.", None])
def test_a_template_with_other_roles_is_found_once_it_is_registered(style, system, monkeypatch):
    own = replace(conv_templates[style], messages=[], offset=0)
    own.roles = ("<|im_start|>human\n", "<|im_start|>bot\n") if style == "mpt" else ("Visitor", "Guide")
    own.system = own.system if system is None else system
    for role, text in ((0, "<image>\nWhat is shown?"), (1, "A circle."), (0, "Which: a or b?"), (1, None)):
        own.append_message(own.roles[role], text)
    with pytest.raises(UserError, match="template is none of conv_templates; then hand"):
        user_turns(own.get_prompt())
    monkeypatch.setitem(conv_templates, "own", replace(own, messages=[]))
    found = user_turns(own.get_prompt())
    assert found[-2:] == ["What is shown?", "Which: a or b?"]


def test_no_words_are_an_error_and_no_empty_text():
    for prompt in ("<image>\n", conversation("v1", ["<image>\n", None]).get_prompt()):
        with pytest.raises(UserError, match="no question of the user is found in the prompt"):
            user_turns(prompt)


def test_clip_sees_words_only():
    assert clip_text("<im_start><image><im_end>\nHow  many?\nOne word. ") == "How  many?\nOne word."
    assert clip_text("Is <image-placeholder> red?") == "Is  red?"


@pytest.mark.parametrize(
    ("name", "start_end", "expected"),
    [
        ("v1", False, "<image>\n<image>\nSame?"),
        ("v1", True, "<im_start><image><im_end>\n<im_start><image><im_end>\nSame?"),
        ("v1_mmtag", False, "<Image><image></Image>\n<Image><image></Image>\nSame?"),
        (
            "v0_mmtag",
            True,
            "<Image><im_start><image><im_end></Image>\n<Image><im_start><image><im_end></Image>\nSame?",
        ),
    ],
)
def test_every_image_is_wrapped_once(name: str, start_end: bool, expected: str):
    wrapped = wrap_image_tokens("<image>\n<image>\nSame?", conv_templates[name], start_end)
    assert wrapped == expected
    assert wrap_image_tokens(wrapped, conv_templates[name], start_end) == expected
    assert clip_text(wrapped) == "Same?"


def test_a_copy_is_independent():
    first = conversation("v1", ["Q", None])
    second = first.copy()
    second.messages[-1][1] = "A"
    assert first.messages[-1][1] is None
    assert conv_templates["v1"].messages == []


def test_a_picture_in_a_tuple_becomes_a_placeholder():
    shown = ("Look: <image>", object(), "Pad")
    assert conversation("v1", [shown, None]).get_prompt().endswith("USER: <image>\nLook: ASSISTANT:")
    tagged = conversation("v1_mmtag", [shown, None]).get_prompt()
    assert "USER: <Image><image></Image> ASSISTANT: Received.</s>USER: Look: ASSISTANT:" in tagged
    assert conversation("v1", [shown, None]).dict()["messages"] == [
        ["USER", "Look: <image>"],
        ["ASSISTANT", None],
    ]


@pytest.mark.parametrize(
    ("configured", "name", "template"),
    [
        ("plain", "llava-v1.5-7b", "plain"),
        (None, "llava-v1.5-7b", "llava_v1"),
        (None, "llava-llama-2-13b-chat", "llava_llama_2"),
        (None, "llava-v1.6-mistral-7b", "mistral_instruct"),
        (None, "llava-v1.6-34b", "chatml_direct"),
        (None, "LLaVA-Lightning-MPT-7B-preview", "mpt"),
        (None, "LLaVA-7b-delta-v0", "llava_v0"),
        (None, "my-own-model", DEFAULT_TEMPLATE),
    ],
)
def test_the_template_is_the_configs_or_what_llava_reads_from_the_name(configured, name, template):
    assert choose_template(configured, name) == template
    find_template(template)


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("llava-v1.5-7b", "llava_v1"),
        ("llava-v1-7b-mmtag", "v1_mmtag"),
        ("llava-v1.5-7b-plain", "v1_mmtag"),
        ("llava-v1.5-7b-plain-finetune", "llava_v1"),
        ("LLaVA-7b-delta-v0-mmtag", "v0_mmtag"),
        ("llava-7b-plain", "v0_mmtag"),
        ("llava-v1.6-mistral-7b-plain", "mistral_instruct"),
        ("a-plain-model", DEFAULT_TEMPLATE),
    ],
)
def test_the_web_page_tells_by_a_name_who_expects_tags(name, template):
    assert choose_web_template(name) == template
    find_template(template)
