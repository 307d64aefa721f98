"""Bodies of chat completions: what becomes a request, and what a sentence."""

import base64
import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava.engine.base import Generation
from llava.errors import UserError
from llava.messages import read_image
from llava.model.multimodal_encoder.reducers.registry import parse_reduction
from llava.serve.api_messages import MAX_CHARACTERS, BodyError, ChatRequest, read_body
from llava.serve.images import MAX_IMAGES


def data_url(color="red", size=(3, 2)):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def text(words):
    return {"type": "text", "text": words}


def image(url=None):
    return {"type": "image_url", "image_url": {"url": url or data_url()}}


def read(content="Hi", **fields):
    return read_body(json.dumps({"messages": [{"role": "user", "content": content}], **fields}).encode())


def test_a_question_is_answered_greedily_unless_the_body_says_otherwise():
    chat = read()
    assert (chat.model, chat.stream, chat.include_usage) == (None, False, False)
    assert chat.request.generation == Generation()
    assert chat.request.generation.temperature == 0
    assert chat.request.token_reduction is None


def test_every_setting_is_read():
    chat = read(
        model="llava",
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=9,
        temperature=1,
        top_p=0.5,
        seed=3,
        stop=["a", "b"],
        n=1,
        presence_penalty=0,
        frequency_penalty=0.0,
        token_reduction="TRIM:9",
        user="anything: it is ignored",
        tools=[],
        response_format={"type": "text"},
    )
    assert (chat.model, chat.stream, chat.include_usage) == ("llava", True, True)
    expected = Generation(max_new_tokens=9, temperature=1.0, top_p=0.5, seed=3, stop=("a", "b"))
    assert chat.request.generation == expected
    assert chat.request.token_reduction == parse_reduction("TRIM:9")


def test_null_is_as_if_a_field_were_missing():
    names = ("model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "stop", "seed", "n")
    assert read(**dict.fromkeys(names)) == read()


def test_the_newer_name_of_the_longest_answer_counts():
    assert read(max_tokens=5, max_completion_tokens=6).request.generation.max_new_tokens == 6
    assert read(stop="end").request.generation.stop == ("end",)


def test_images_stay_at_their_places_among_the_texts():
    (message,) = read([text("Compare"), image(), text("with"), image(data_url("blue"))]).request.messages
    assert message.text == "Compare\n<image>\nwith\n<image>"
    red, blue = map(read_image, message.images)
    assert (red.getpixel((0, 0)), blue.getpixel((0, 0))) == ((255, 0, 0), (0, 0, 255))


def test_a_conversation_keeps_its_roles():
    turns = [
        {"role": "system", "content": [text("Be brief."), text("Be kind.")]},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "An <image> two"},
        {"role": "user", "content": "Three", "name": "me"},
    ]
    messages = read_body(json.dumps({"messages": turns}).encode()).request.messages
    assert [(message.role, message.text) for message in messages] == [
        ("system", "Be brief.\nBe kind."),
        ("user", "One"),
        ("assistant", "An <image> two"),
        ("user", "Three"),
    ]


@pytest.mark.parametrize("value", ["not base64", "data:image/png;base64,!!!", "data:image/png;base64,AAAA"])
def test_an_image_that_cannot_be_read_names_its_place(value):
    url = value if value.startswith("data:") else f"data:image/png;base64,{value}"
    (source,) = read([text("What?"), image(url)]).request.images
    with pytest.raises(UserError, match=r"the image messages\[0\]\.content\[1\] is"):
        read_image(source)


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"messages": None}, "messages", "messages is missing or empty; accepted: a list of messages"),
        ({"messages": []}, "messages", "missing or empty"),
        ({"messages": "Hi"}, "messages", "messages is 'Hi'; accepted: a list of messages"),
        ({"messages": ["Hi"]}, "messages[0]", "accepted: an object with role and content"),
        ({"messages": [{"role": "robot"}]}, "messages[0].role", "'robot'; accepted: system, user, assistant"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "content is missing; accepted: a text or"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0]", "type missing"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0; accepted: 1 or more"),
        ({"max_tokens": True}, "max_tokens", "max_tokens is true; accepted: a whole number"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "1.5; accepted: a whole number"),
        ({"temperature": "hot"}, "temperature", "temperature is 'hot'; accepted: a number"),
        ({"temperature": 10**400}, "temperature", "too large"),
        ({"temperature": -1}, None, "temperature is -1.0; accepted: 0"),
        ({"top_p": 2}, None, "top_p is 2.0; accepted: above 0, up to 1"),
        ({"seed": -1}, None, "seed is -1; accepted: 0 or more"),
        ({"stop": list("abcde")}, "stop", "stop has 5 texts; accepted: up to 4"),
        ({"stop": [1]}, "stop", "stop has 1; accepted: texts of 1 to 256 characters"),
        ({"stop": ["s" * 257]}, "stop", "accepted: texts of 1 to 256"),
        ({"stream": "yes"}, "stream", "stream is 'yes'; accepted: true or false"),
        ({"stream_options": 1}, "stream_options", "stream_options is 1; accepted: an object"),
        ({"n": 2}, "n", "n is 2; accepted: 1"),
        ({"tools": [{"type": "function"}]}, "tools", "tools is a list; answers are plain text, leave it out"),
        ({"logprobs": True}, "logprobs", "logprobs is true; answers are plain text, leave it out"),
        ({"response_format": {"type": "json_object"}}, "response_format", "response_format is an object"),
        ({"presence_penalty": 0.5}, "presence_penalty", "presence_penalty is 0.5; accepted: 0"),
        ({"model": 7}, "model", "model is 7; accepted: the name of a model"),
        ({"token_reduction": "TRIM:zero"}, None, "'TRIM:zero' is not a token reduction; accepted:"),
        ({"token_reduction": "T" * 9999}, "token_reduction", "that is no setting"),
    ],
)
def test_a_field_that_is_not_accepted_is_named(fields, param, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        read(**fields)
    assert getattr(caught.value, "param", None) == param
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/a.png", "https://example.org/", "file:///etc/passwd", "a.png"]
)
def test_addresses_are_refused_before_anything_is_read(url):
    with pytest.raises(
        BodyError, match=r"messages\[0\]\.content\[0\]\.image_url\.url is '.*nothing is fetched"
    ):
        read([image(url)])


def test_a_placeholder_in_the_users_words_is_refused():
    for content in ("What is <image>?", [text("<image>"), image()]):
        with pytest.raises(BodyError, match="marks the place of an image"):
            read(content)


def test_only_users_show_images_and_not_too_many():
    with pytest.raises(UserError, match="only those from 'user'"):
        read_body(json.dumps({"messages": [{"role": "assistant", "content": [image()]}]}).encode())
    assert len(read([image()] * MAX_IMAGES).request.images) == MAX_IMAGES
    with pytest.raises(BodyError, match=f"{MAX_IMAGES + 1} images; accepted: up to {MAX_IMAGES}"):
        read([image()] * (MAX_IMAGES + 1))


def test_text_beyond_all_models_is_refused_before_it_is_tokenized():
    with pytest.raises(BodyError, match=f"characters; accepted: up to {MAX_CHARACTERS}"):
        read("a" * (MAX_CHARACTERS + 1))


def test_a_body_of_countless_values_is_refused_before_it_takes_memory():
    with pytest.raises(UserError, match="commas and brackets; accepted: up to 262144"):
        read_body(b"[" + b"[]," * 10_000_000 + b"1]")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe{", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}", b"[]", b"null", b"{}"],
    ids=["empty", "cut", "no text", "deep", "huge number", "list", "null", "no messages"],
)
def test_what_is_no_body_is_refused(data):
    with pytest.raises(UserError, match="body is|messages is missing"):
        read_body(data)


def test_half_of_a_character_is_refused():
    with pytest.raises(BodyError, match="half of a character, at 2"):
        read_body(rb'{"messages": [{"role": "user", "content": "Hi\ud800"}]}')


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
urls = st.sampled_from([data_url(), "data:image/png;base64,AAAA", "http://localhost/", "data:,"]) | st.text()
parts = (
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=30) | junk})
    | st.fixed_dictionaries(
        {"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": urls}) | junk}
    )
    | junk
)
messages = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "user", "assistant"]) | junk,
        "content": st.text(max_size=30) | st.lists(parts, max_size=4) | junk,
    }
)
bodies = st.fixed_dictionaries(
    {"messages": st.lists(messages, max_size=4) | st.lists(messages, min_size=1, max_size=1) | junk},
    optional={
        "model": st.just("llava-shapes") | junk,
        "stream": st.booleans() | junk,
        "stream_options": st.fixed_dictionaries({"include_usage": st.booleans() | junk}) | junk,
        "max_tokens": st.integers(-1, 8) | junk,
        "max_completion_tokens": st.integers(-1, 8) | junk,
        "temperature": st.floats() | junk,
        "top_p": st.floats(0, 1) | junk,
        "stop": st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=5) | junk,
        "seed": st.integers() | junk,
        "n": st.integers(0, 2) | junk,
        "presence_penalty": st.integers(0, 1) | junk,
        "token_reduction": st.sampled_from(["none", "TRIM:-1", "TRIM:inf", "Pool:1e999", "Random:8"])
        | st.builds("TRIM:{}".format, st.floats() | st.text(max_size=5))
        | junk,
    },
)


def outcome(data):
    """Read a body and its images as a server does."""
    try:
        chat = read_body(data)
        for source in chat.request.images:
            read_image(source)
    except UserError as error:
        return error
    return chat


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, database=None)
@given(bodies | junk)
def test_any_json_is_a_request_or_a_sentence(body):
    assert isinstance(outcome(json.dumps(body).encode()), ChatRequest | UserError)


@settings(max_examples=1000, deadline=None, database=None)
@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda words: f'{{"messages": {words}}}'.encode()))
def test_any_bytes_are_a_request_or_a_sentence(data):
    assert isinstance(outcome(data), ChatRequest | UserError)
