"""A client of LLaVA's controller and workers: which models there are, and answers as they are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import requests

from llava.errors import UserError
from llava.serve.protocol import TIMEOUT_S, GenerateRequest, read_chunks
from llava.serve.register_worker import post_json


class WorkerClient:
    """Asks the workers that a controller knows.

    Args:
        controller: Its address.
    """

    def __init__(self, controller: str) -> None:
        self._controller = controller

    def models(self, *, refresh: bool = True) -> list[str]:
        """Return the names of the models that are served, in the alphabet's order.

        Args:
            refresh: Have the controller ask its workers first.

        Raises:
            UserError: If the controller does not answer.
        """
        if refresh:
            post_json(f"{self._controller}/refresh_all_workers", timeout=4 * TIMEOUT_S)  # it asks all workers
        reply = post_json(f"{self._controller}/list_models")
        names = reply.get("models") if isinstance(reply, dict) else None
        return sorted(name for name in names or [] if isinstance(name, str))

    def find_worker(self, model: str) -> str:
        """Return the address of a worker.

        Args:
            model: What it is to serve.

        Raises:
            UserError: If there is none.
        """
        reply = post_json(f"{self._controller}/get_worker_address", {"model": model})
        address = reply.get("address") if isinstance(reply, dict) else None
        if not address:
            served = ", ".join(self.models(refresh=False)) or "none"
            raise UserError(f"{self._controller} has no worker for {model!r}; served: {served}")
        return str(address)

    def stream(self, model: str, asked: GenerateRequest) -> Iterator[str]:
        """Yield the answer of one of the model's workers, each time all of it that there is.

        A worker that is lost before it has said anything is replaced by another, once.

        Raises:
            UserError: If there is no worker, or it answers with an error.
        """
        worker = self.find_worker(model)
        has_begun = False
        try:
            for text in stream_answer(worker, model, asked):
                has_begun = True
                yield text
        except UnreachableError:
            if has_begun:
                raise
            self.models()  # the controller drops the workers that are lost
            yield from stream_answer(self.find_worker(model), model, asked)


class UnreachableError(UserError):
    """A worker that cannot be reached, or is no longer there."""


def stream_answer(worker: str, model: str, asked: GenerateRequest) -> Iterator[str]:
    """Yield the answer of a worker, each time all of it that there is.

    Args:
        worker: Its address.
        model: Its name.
        asked: The request.

    Raises:
        UnreachableError: If the worker does not answer, or no longer.
        UserError: If it answers with an error, or with what is no answer.
    """
    try:
        with requests.Session() as session:
            session.trust_env = False  # no proxy stands between the parts of a server
            response = session.post(
                f"{worker}/worker_generate_stream",
                json={"model": model, **asdict(asked)},
                headers={"User-Agent": "LLaVA Client"},
                stream=True,
                timeout=(TIMEOUT_S, None),  # other requests may be before this one
            )
            for chunk in read_chunks(response.iter_content(None)):
                if chunk.error_code:
                    raise UserError(f"{chunk.text} (error code {chunk.error_code})")
                yield chunk.text[len(asked.prompt) :]
    except requests.RequestException as error:
        raise UnreachableError(f"{worker} does not answer: {type(error).__name__}") from error
