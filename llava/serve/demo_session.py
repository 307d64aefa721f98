"""What the demo does, without its page: conversations, comparisons, and what is shown of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

from llava.assistant import Assistant, Chat
from llava.conversation import conv_templates, find_template
from llava.engine.base import Generation
from llava.errors import UserError
from llava.image_io import load_image
from llava.messages import Answer, Cost
from llava.serve.conversation_log import ConversationLog
from llava.visualize import draw_kept

FEWEST_PIXELS = 448  # of a drawn side, so that the outlines of patches can be told apart


@dataclass(frozen=True, slots=True)
class Settings:
    """How the next answer is given.

    Attributes:
        token_reduction: As ``mm_vision_token_reduce_func`` has it; empty for the model's.
        template: Name of a conversation template; empty for the model's.
        generation: How the answer is written.
        model: Which model answers, where there are several.
    """

    token_reduction: str = ""
    template: str = ""
    generation: Generation = field(default_factory=Generation)
    model: str = ""


@dataclass(slots=True)
class Session:
    """The conversation of one visitor.

    Attributes:
        chat: The conversation.
        image_path: File of its image; empty for none.
        image: The image.
    """

    chat: Chat
    image_path: str = ""
    image: Image.Image | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What is shown of a conversation.

    Attributes:
        history: Its turns, as ``role`` and ``content``.
        facts: What the last answer cost.
        kept: The image with the dropped patches dimmed.
        error: What went wrong with the last question; it is not part of the history.
    """

    history: list[dict[str, str]] = field(default_factory=list)
    facts: str = ""
    kept: Image.Image | None = None
    error: str = ""

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.history[-1]["content"] if self.history else ""


class Demo:
    """A model, and what its visitors do with it.

    Args:
        assistant: Answers.
        name: Of the model.
        log: Gets conversations and votes, if there is one.
    """

    def __init__(self, assistant: Assistant, name: str, log: ConversationLog | None = None) -> None:
        self.assistant = assistant
        self.name = name
        self._log = log

    @property
    def template(self) -> str:
        """Name of the model's own template."""
        own = self.assistant.template
        return next((name for name, template in conv_templates.items() if template == own), "")

    @property
    def reduction(self) -> str:
        """Setting of the model's own reducer."""
        return str(self.assistant.encoder.reducer)

    def ask(
        self, session: Session | None, question: str, image_path: str, settings: Settings, address: str = ""
    ) -> Iterator[tuple[Session, View]]:
        """Answer the next question of a conversation, which begins anew with another image.

        Args:
            session: The conversation; None begins one.
            question: What is asked.
            image_path: File of the image, empty for none.
            settings: How to answer.
            address: Of the visitor, for the log.

        Yields:
            The conversation, and what is to be shown of it so far; a question that failed leaves no trace in
            the history.
        """
        try:
            session = self._session_for(session, image_path)
            session.chat.token_reduction = settings.token_reduction or None
            session.chat.template = settings.template or None
            pieces = session.chat.stream(question, generation=settings.generation)
        except UserError as error:
            session = session or Session(self.assistant.chat())
            yield session, self._view(session, error=str(error))
            return
        yield from self._answer(session, [*_history(session.chat), _turn("user", question)], pieces, address)

    def regenerate(
        self, session: Session | None, settings: Settings, address: str = ""
    ) -> Iterator[tuple[Session, View]]:
        """Answer the last question of a conversation anew; see `ask`."""
        session = session or Session(self.assistant.chat())
        session.chat.token_reduction = settings.token_reduction or None
        session.chat.template = settings.template or None
        history = _history(session.chat)[:-1]
        yield from self._answer(session, history, session.chat.regenerate(settings.generation), address)

    def compare(
        self, question: str, image_path: str, first: Settings, second: Settings, address: str = ""
    ) -> Iterator[tuple[View, View]]:
        """Answer one question with two settings, one after the other, so that neither slows the other down.

        Args:
            question: What is asked.
            image_path: File of the image, empty for none.
            first: Of the left answer.
            second: Of the right one.
            address: Of the visitor, for the log.

        Yields:
            What is to be shown of both so far.
        """
        left = View()
        for _, left in self.ask(None, question, image_path, first, address):
            yield left, View()
        for _, right in self.ask(None, question, image_path, second, address):
            yield left, right

    def vote(self, kind: str, session: Session | None, address: str = "") -> bool:
        """Write what a visitor thinks of the last answer into the log; False if there is nothing to write.

        Args:
            kind: ``upvote``, ``downvote`` or ``flag``.
            session: The conversation.
            address: Of the visitor.
        """
        if self._log is None or session is None or not session.chat.messages:
            return False
        self._write(kind, session, address)
        return True

    def _session_for(self, session: Session | None, image_path: str) -> Session:
        if session is not None and session.image_path == image_path:
            return session
        image = load_image(image_path) if image_path else None
        return Session(self.assistant.chat(image), image_path, image)

    def _answer(
        self, session: Session, history: list[dict[str, str]], pieces: Iterator[str], address: str
    ) -> Iterator[tuple[Session, View]]:
        """Show an answer while it is written."""
        text, started = "", time.time()
        yield session, View([*history, _turn("assistant", "…")])
        try:
            for piece in pieces:
                text += piece
                yield session, View([*history, _turn("assistant", text)])
        except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told what it is
            yield session, self._view(session, error=describe_error(error))
            return
        self._write("chat", session, address, start=round(started, 4), finish=round(time.time(), 4))
        yield session, self._view(session)

    def _view(self, session: Session, error: str = "") -> View:
        answers = session.chat.answers
        if not answers:
            return View(error=error)
        drawn = self._draw(session.image, answers[-1])
        return View(_history(session.chat), describe_answer(answers[-1]), drawn, error)

    def _draw(self, image: Image.Image | None, answer: Answer) -> Image.Image | None:
        if image is None or not answer.kept:
            return None
        scale = -(-FEWEST_PIXELS // max(image.size))
        if scale > 1:
            image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        aspect = getattr(self.assistant.model.config, "image_aspect_ratio", None)
        return draw_kept(image, answer.kept[0], aspect)

    def _write(self, kind: str, session: Session, address: str, **more: float) -> None:
        if self._log is None:
            return
        template = session.chat.template
        conversation = (find_template(template) if template else self.assistant.template).copy()
        for message in session.chat.messages:
            shown = "<image>\n" * len(message.images)
            conversation.append_message(
                conversation.roles[message.role == "assistant"], f"{shown}{message.text}"
            )
        images = [] if session.image is None else [session.image]
        self._log.write(kind, self.name, conversation.dict(), address=address, images=images, **more)


def describe_answer(answer: Answer) -> str:
    """Return a line in Markdown: patches, visual tokens, time to the first token and to all of them."""
    return f"{_describe_tokens(answer.cost)} · {_describe_time(answer.cost)}"


def describe_error(error: Exception) -> str:
    """Return what went wrong as a visitor can understand it."""
    if isinstance(error, UserError):
        return str(error)
    return f"the model failed: {error}" if str(error) else f"the model failed: {type(error).__name__}"


def _describe_tokens(cost: Cost) -> str:
    if not cost.patches:
        return "no image"
    fewer = 100 * (1 - cost.visual_tokens / cost.patches)
    saved = f" ({fewer:.0f}% fewer)" if fewer >= 0.5 else ""
    return f"**{cost.patches} patches → {cost.visual_tokens} visual tokens**{saved}"


def _describe_time(cost: Cost) -> str:
    first = cost.vision_ms + cost.reduction_ms + cost.prefill_ms
    tokens = "1 token" if cost.new_tokens == 1 else f"{cost.new_tokens} tokens"
    stages = f"vision {cost.vision_ms:.0f}, reduction {cost.reduction_ms:.0f}, prefill {cost.prefill_ms:.0f}"
    return f"first token after **{first:.0f} ms** ({stages}) · {tokens} in {first + cost.decode_ms:.0f} ms"


def _history(chat: Chat) -> list[dict[str, str]]:
    return [_turn(message.role, message.text) for message in chat.messages]


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}
