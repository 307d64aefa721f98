"""Text of an answer while its tokens arrive."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

UNFINISHED_LETTER = "\ufffd"  # what a decoder gives for a letter whose last bytes are still to come


class AnswerText:
    """Gathers tokens and gives out text as soon as no later token can change it.

    Attributes:
        ids: Tokens so far.
        stopped: Whether the text that ends an answer has come.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: str) -> None:
        """Begin an answer; ``stop`` is the text that ends it, if the model writes it out."""
        self.ids: list[int] = []
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._given = 0

    @property
    def text(self) -> str:
        """The whole answer so far, without what ends it and without outer blanks."""
        return self._decoded().partition(self._stop)[0].rstrip()

    def push(self, token: int) -> str:
        """Add a token and return the text that has become certain."""
        self.ids.append(token)
        text = self._decoded()
        self.stopped = self._stop in text
        if self.stopped:
            return self.finish()
        # A blank may be the last one, and a beginning of the stop text may become the whole of it.
        begun = (length for length in range(len(self._stop) - 1, 0, -1) if text.endswith(self._stop[:length]))
        certain = text[: len(text) - next(begun, 0)].rstrip(UNFINISHED_LETTER).rstrip()
        return self._give(certain)

    def finish(self) -> str:
        """Return what was held back, now that the answer has ended."""
        return self._give(self.text)

    def _decoded(self) -> str:
        return self._tokenizer.decode(self.ids, skip_special_tokens=True).lstrip()

    def _give(self, certain: str) -> str:
        piece = certain[self._given :]
        self._given = max(self._given, len(certain))
        return piece
