"""What LLaVA's web page does, without the page: conversations with the models of a controller's workers."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, choose_web_template, find_template
from llava.errors import UserError
from llava.image_io import load_image
from llava.serve.conversation_log import ConversationLog
from llava.serve.demo_session import Settings, View, describe_error
from llava.serve.images import MAX_IMAGE_BYTES
from llava.serve.protocol import GenerateRequest
from llava.serve.worker_client import WorkerClient

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class WorkerSession:
    """The conversation of one visitor.

    Attributes:
        model: That answers.
        template: Chosen when the conversation began, and not yet spoken.
        image_path: File of its image; empty for none.
        turns: Questions and answers in turn.
    """

    model: str
    template: Conversation
    image_path: str = ""
    turns: list[str] = field(default_factory=list)

    def render(self, turns: Sequence[str | None]) -> Conversation:
        """Return a conversation with the template and image of this one; None is a turn to be written."""
        said = self.template.copy()
        for number, text in enumerate(turns):
            shows_image = number == 0 and bool(self.image_path)
            message = (f"{DEFAULT_IMAGE_TOKEN}\n{text}", None, "Default") if shows_image else text
            said.append_message(said.roles[number % 2], message)
        return said


class WorkerDemo:
    """Models behind a controller, and what visitors do with them.

    Args:
        client: Of the controller.
        log: Gets conversations and votes, if there is one.
        objection: Returns why a question is not to be answered; None if it may be.
    """

    def __init__(
        self,
        client: WorkerClient,
        log: ConversationLog | None = None,
        objection: Callable[[str], str | None] = lambda question: None,
    ) -> None:
        self.client = client
        self._log = log
        self._objection = objection

    @property
    def template(self) -> str:
        """Name of the template: empty, since the model's name decides."""
        return ""

    def models(self) -> list[str]:
        """Return the names of the models that are served; none if the controller does not answer."""
        try:
            return self.client.models()
        except UserError as error:
            logger.warning("%s", error)
            return []

    def ask(
        self,
        session: WorkerSession | None,
        question: str,
        image_path: str,
        settings: Settings,
        address: str = "",
    ) -> Iterator[tuple[WorkerSession | None, View]]:
        """Answer the next question of a conversation, which begins anew with another image.

        Args:
            session: The conversation; None begins one.
            question: What is asked.
            image_path: File of the image, empty for none.
            settings: How to answer, and which model.
            address: Of the visitor, for the log.

        Yields:
            The conversation, and what is to be shown of it so far; a question that failed leaves no trace in
            the history.
        """
        question = question.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        try:
            if not question:
                raise UserError("there is no question")
            if why := self._objection(question):
                raise UserError(why)
            session = _session_for(session, image_path, settings)
        except UserError as error:
            yield session, View(_history(session.turns if session else []), error=str(error))
            return
        yield from self._answer(session, session.turns, question, settings, address)

    def regenerate(
        self, session: WorkerSession | None, settings: Settings, address: str = ""
    ) -> Iterator[tuple[WorkerSession | None, View]]:
        """Answer the last question of a conversation anew; see `ask`."""
        if session is None or not session.turns:
            yield session, View(error="there is no answer to give anew; ask something first")
            return
        *before, question, _ = session.turns
        yield from self._answer(session, before, question, settings, address)

    def vote(self, kind: str, session: WorkerSession | None, address: str = "") -> bool:
        """Write what a visitor thinks of the last answer into the log; False if there is nothing to write.

        Args:
            kind: ``upvote``, ``downvote`` or ``flag``.
            session: The conversation.
            address: Of the visitor.
        """
        if self._log is None or session is None or not session.turns:
            return False
        self._write(kind, session, address)
        return True

    def _answer(
        self, session: WorkerSession, before: list[str], question: str, settings: Settings, address: str
    ) -> Iterator[tuple[WorkerSession, View]]:
        """Show an answer to a question after some turns while it is written."""
        started, answer = time.time(), ""
        yield session, View(_history([*before, question, "…"]))
        try:
            for text in self.client.stream(settings.model, _request(session, before, question, settings)):
                answer = text.strip()
                yield session, View(_history([*before, question, answer]))
        except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told what it is
            yield session, View(_history(session.turns), error=describe_error(error))
            return
        session.model, session.turns = settings.model, [*before, question, answer]
        self._write("chat", session, address, start=round(started, 4), finish=round(time.time(), 4))
        yield session, View(_history(session.turns), f"answered by `{settings.model}`")

    def _write(self, kind: str, session: WorkerSession, address: str, **more: float) -> None:
        if self._log is not None:
            images = [load_image(session.image_path)] if session.image_path else []
            state = session.render(session.turns).dict()
            self._log.write(kind, session.model, state, address=address, images=images, **more)


def _session_for(session: WorkerSession | None, image_path: str, settings: Settings) -> WorkerSession:
    """Return the conversation that goes on, or a new one where there is none or another image.

    Raises:
        UserError: If there is no model or template, or the image cannot be read.
    """
    if not settings.model:
        raise UserError("no model is chosen: either none is served, or the list is to be loaded anew")
    if session is not None and session.image_path == image_path:
        return session
    if image_path:
        load_image(image_path)  # says what is wrong with it before a worker does
        if Path(image_path).stat().st_size > MAX_IMAGE_BYTES:
            raise UserError(f"the image is larger than {MAX_IMAGE_BYTES // 2**20} MiB")
    name = settings.template or choose_web_template(settings.model)
    return WorkerSession(settings.model, find_template(name), image_path)


def _request(session: WorkerSession, before: list[str], question: str, settings: Settings) -> GenerateRequest:
    image = [Path(session.image_path).read_bytes()] if session.image_path else []
    generation = settings.generation
    return GenerateRequest(
        prompt=session.render([*before, question, None]).get_prompt(),
        images=tuple(base64.b64encode(data).decode() for data in image),
        temperature=generation.temperature,
        top_p=1.0 if generation.top_p is None else generation.top_p,
        max_new_tokens=generation.max_new_tokens,
        stop=session.template.ends[1],
    )


def _history(turns: Sequence[str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)]
