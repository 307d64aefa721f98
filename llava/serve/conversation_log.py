"""LLaVA's log of conversations and votes: a line of JSON for each, in a file for each day."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from llava.errors import UserError


class ConversationLog:
    """Writes what was said, and what users thought of it; several threads may write at once.

    Args:
        folder: Gets ``YYYY-MM-DD-conv.json``, and with images ``serve_images/YYYY-MM-DD/<md5>.jpg``.
        log_images: Keep images and addresses too, and not only text.

    Raises:
        UserError: If nothing can be written there.
    """

    def __init__(self, folder: Path, *, log_images: bool = False) -> None:
        self._folder = folder
        self._log_images = log_images
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._path().open("a").close()
        except OSError as error:
            raise UserError(f"the log folder {folder} cannot be written: {error.strerror}") from error

    def write(
        self,
        kind: str,
        model: str,
        state: dict[str, Any],
        *,
        address: str = "",
        images: Sequence[Image.Image] = (),
        **more: Any,
    ) -> None:
        """Write a record.

        Args:
            kind: ``chat``, ``upvote``, ``downvote`` or ``flag``.
            model: Its name.
            state: The conversation, as LLaVA writes it.
            address: Of the user.
            images: Of the conversation.
            **more: Further keys.
        """
        record = {"tstamp": round(time.time(), 4), "type": kind, "model": model, **more, "state": state}
        if self._log_images:
            record |= {"images": [self._keep(image) for image in images], "ip": address}
        line = json.dumps(record, ensure_ascii=False) + "\n"
        with self._lock, self._path().open("a", encoding="utf-8") as file:
            file.write(line)

    def _path(self) -> Path:
        return self._folder / f"{_today()}-conv.json"

    def _keep(self, image: Image.Image) -> str:
        """Keep an image, once, and return its hash."""
        name = hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest()
        path = self._folder / "serve_images" / _today() / f"{name}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        return name


def _today() -> str:
    return datetime.now().strftime("%Y-%m-%d")
