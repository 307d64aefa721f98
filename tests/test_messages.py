"""What is asked is checked when it is made, before any image is read."""

import pytest
from PIL import Image

from llava.engine.base import Generation
from llava.errors import MissingFileError, UserError
from llava.messages import Message, Request, read_image
from llava.model.multimodal_encoder.token_reduction import Trim
from tests.conftest import GOLDEN

IMAGE = Image.new("RGB", (4, 4))


def never():
    raise AssertionError("read too early")


def test_a_setting_is_read_when_the_request_is_made():
    assert isinstance(Request.ask("What?", never, token_reduction="TRIM:-1").token_reduction, Trim)
    with pytest.raises(UserError, match="accepted"):
        Request.ask("What?", never, token_reduction="TRIM:0")
    with pytest.raises(UserError, match="max_new_tokens"):
        Request.ask("What?", never, generation=Generation(max_new_tokens=0))


@pytest.mark.parametrize(
    "roles",
    [[], ["assistant"], ["user", "assistant"], ["user", "user"], ["system"], ["user", "system", "user"]],
)
def test_turns_alternate_and_end_with_the_users(roles):
    with pytest.raises(UserError, match="user and assistant by turns"):
        Request(tuple(Message(role, "text") for role in roles))


@pytest.mark.parametrize("roles", [["user"], ["system", "user"], ["system", "user", "assistant", "user"]])
def test_conversations_that_can_be_continued(roles):
    assert len(Request([Message(role, "text") for role in roles]).messages) == len(roles)


def test_only_the_user_shows_images():
    assert Message("user", "text", (IMAGE,)).images == (IMAGE,)
    with pytest.raises(UserError, match="'assistant' has images"):
        Message("assistant", "text", (IMAGE,))
    with pytest.raises(UserError, match="from 'tool'; accepted: system, user, assistant"):
        Message("tool", "text")


def test_images_come_from_anywhere():
    assert read_image(IMAGE) is IMAGE
    assert read_image(lambda: IMAGE) is IMAGE
    assert read_image(GOLDEN / "img0.png").mode == "RGB"
    with pytest.raises(MissingFileError, match=r"nowhere\.png"):
        read_image("nowhere.png")
