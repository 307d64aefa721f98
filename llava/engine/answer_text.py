"""Text of an answer while its tokens arrive."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\ufffd"  # what a decoder gives for a character whose last bytes are still to come
MOST_HELD = 32  # tokens; a character has up to 4, but nonsense may precede it


class AnswerText:
    """Gathers tokens and gives out text as soon as no later token can change it.

    Every token is decoded with the ones just before it, on which its leading space depends, so that it costs
    as much in a long answer as in a short one.

    Args:
        tokenizer: Of the language model.
        stops: Texts that end the answer and are left out of it.

    Attributes:
        ids: Tokens so far.
        text: What was given out so far.
        stopped: Whether a text that ends the answer has come.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = stops
        self._special = frozenset(tokenizer.all_special_ids)  # which have no text
        self._shown: list[int] = []  # the other ids
        self._held = ""  # decoded, but maybe trailing whitespace or the beginning of a stop text
        # Tokens from `_context` to `_decoded` are decoded again as what precedes the next ones.
        self._context = self._decoded = 0
        self._context_text = ""

    def push(self, token: int) -> str:
        """Add a token and return the text that has become certain."""
        self.ids.append(token)
        if token in self._special:
            return ""
        self._shown.append(token)
        window = self._decode(self._context)
        if window.endswith(INCOMPLETE) and len(self._shown) - self._decoded < MOST_HELD:
            return ""
        self._take(window)
        ends = [found for stop in self._stops if (found := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._held = self._held[: min(ends)]
            return self._give(self._held.rstrip())
        return self._give(self._held[: len(self._held) - self._begun_stop()].rstrip())

    def finish(self) -> str:
        """Return what was held back, now that the answer has ended."""
        if not self.stopped:
            self._take(self._decode(self._context))
        return self._give(self._held.rstrip())

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(
            self._shown[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _take(self, window: str) -> None:
        """Add what the tokens behind the context say, and make them the next context."""
        self._held += window[len(self._context_text) :]
        self._context, self._decoded = self._decoded, len(self._shown)
        self._context_text = self._decode(self._context)

    def _begun_stop(self) -> int:
        """Count the characters at the end that may become a stop text."""
        return max(
            (
                length
                for stop in self._stops
                for length in range(1, len(stop))
                if self._held.endswith(stop[:length])
            ),
            default=0,
        )

    def _give(self, certain: str) -> str:
        self._held = self._held[len(certain) :]
        piece = certain if self.text else certain.lstrip()
        self.text += piece
        return piece
