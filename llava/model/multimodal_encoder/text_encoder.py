"""CLIP's text encoder, which remembers what it has read and may be shared by threads.

Shapes: B images, E width of CLIP's joint space.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from llava.errors import UserError
from llava.model.placement import hand_over
from llava.model.splice import ImageText
from llava.utils import check_characters

logger = logging.getLogger(__name__)

CACHED_TEXTS = 4096  # embeddings of the last distinct texts; at 768 floats each, 12 MiB
# Guards text encoders and their caches. One lock serves all, since what holds a lock cannot be copied.
TEXT_LOCK = threading.RLock()


def without_autocast(device: torch.device) -> torch.autocast:
    """Switch autocast off: training with it must not round what decides which patches stay."""
    return torch.autocast(device.type, enabled=False)


class TextEncoder:
    """Embeds texts in CLIP's joint space, each by itself, and remembers the embeddings.

    Args:
        model: CLIP's text encoder with its projection, frozen.
        tokenizer: Of CLIP.
        run: Projects the ids of one text, on the host (1, L), with the model: (1, E).
    """

    def __init__(
        self,
        model: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        run: Callable[[Tensor], Tensor],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._run = run
        self._cache: dict[str, Tensor] = {}
        self._has_warned_of_length = False

    @torch.no_grad()
    def __call__(self, texts: Sequence[ImageText]) -> Tensor:
        """Return one embedding per image, (B, E): of its text, or the mean of its texts.

        Every distinct text is encoded by itself and without padding, so that no answer depends on its
        neighbors.

        Raises:
            UserError: If an image has no text, or a text holds what is no character.
        """
        per_image = [[text] if isinstance(text, str) else list(text) for text in texts]
        if not all(per_image):
            raise UserError("an image has an empty list of texts; give at least one per image")
        distinct = dict.fromkeys(text for own in per_image for text in own)
        embeddings = {text: self._embed(text) for text in distinct}
        return torch.stack([_mean([embeddings[text] for text in own]) for own in per_image])

    @torch.no_grad()
    def states(self, text: str) -> Tensor:
        """Return projected states at all positions of CLIP's context, (77, E) in float32.

        Behind the text the ids are 0, which no position of the text attends to.
        """
        ids = self._ids(text)
        padding = self.model.config.max_position_embeddings - len(ids)
        device = self.model.text_projection.weight.device
        padded = hand_over(torch.tensor([ids + [0] * padding]), device)
        mask = hand_over(torch.tensor([[1] * len(ids) + [0] * padding]), device)
        with without_autocast(device):
            hidden = self.model.text_model(input_ids=padded, attention_mask=mask).last_hidden_state
            return self.model.text_projection(hidden)[0].float()

    def clear_cache(self) -> None:
        """Forget all embeddings, because the weights that made them have changed."""
        with TEXT_LOCK:
            self._cache.clear()

    def _embed(self, text: str) -> Tensor:
        """Look up or encode one text, (E,): a frozen text encoder says the same whenever it is asked."""
        with TEXT_LOCK:
            embedding = self._cache.get(text)
            if embedding is None:
                if len(self._cache) >= CACHED_TEXTS:
                    del self._cache[next(iter(self._cache))]
                self._cache[text] = embedding = self._encode(text)
            return embedding

    def _encode(self, text: str) -> Tensor:
        """Project one text: (E,) in float32."""
        with without_autocast(self.model.text_projection.weight.device):
            return self._run(torch.tensor([self._ids(text)]))[0].float()

    def _ids(self, text: str) -> list[int]:
        """Tokenize a text, cut at CLIP's context length with its front kept."""
        limit = self.model.config.max_position_embeddings
        check_characters(text, "a text for CLIP")
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        if len(ids) > limit:
            self._warn_of_length(len(ids), limit)
            ids = ids[: limit - 1] + ids[-1:]
        return ids

    def _warn_of_length(self, length: int, limit: int) -> None:
        if not self._has_warned_of_length:
            self._has_warned_of_length = True
            logger.warning(
                "a question has %d CLIP tokens: the first %d decide which patches stay (logged once)",
                length,
                limit,
            )


def _mean(embeddings: Sequence[Tensor]) -> Tensor:
    """Average embeddings (E,), of which there mostly is one."""
    return embeddings[0] if len(embeddings) == 1 else torch.stack(list(embeddings)).mean(dim=0)
