"""OpenAI's moderation of questions, as LLaVA's ``--moderate`` asks for it."""

from __future__ import annotations

import logging
import os

import requests

from llava.errors import UserError

logger = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
TIMEOUT_S = 5.0
OBJECTION = "the question is not answered, because the moderation objects to it"


class Moderation:
    """Judges questions.

    Args:
        url: Of the server.
        key: Of the user.
    """

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._key = key

    @classmethod
    def from_environment(cls) -> Moderation:
        """Return the moderation at ``OPENAI_BASE_URL``, else OpenAI's, with the key ``OPENAI_API_KEY``.

        Raises:
            UserError: If there is no key.
        """
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key and key.isascii() and key.isprintable()):
            raise UserError("--moderate needs the variable OPENAI_API_KEY, which is not set to a key")
        return cls(os.environ.get("OPENAI_BASE_URL", "").strip() or OPENAI_URL, key)

    def objection(self, question: str) -> str | None:
        """Return why a question is not to be answered; None if it may be.

        If the server cannot say, questions are answered, as LLaVA does, and the log tells.
        """
        try:
            response = requests.post(
                f"{self._url}/moderations",
                json={"input": question},
                headers={"Authorization": f"Bearer {self._key}"},
                timeout=TIMEOUT_S,
            )
            response.raise_for_status()
            is_flagged = response.json()["results"][0]["flagged"]
        except (requests.RequestException, LookupError, TypeError) as error:
            logger.warning("a question was not judged: %s", type(error).__name__)
            return None
        return OBJECTION if is_flagged else None
