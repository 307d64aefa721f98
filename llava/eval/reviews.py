"""What a judge says about answers: asked for several at once, kept one by one, never mixed up."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from llava.errors import UserError
from llava.eval.benchmark import JudgeTask, Mark, Messages, Response
from llava.eval.files import JsonObject, explaining_writes, json_line, move_aside, write_jsonl
from llava.eval.journal import LOCK_PATIENCE_S
from llava.eval.judge import Judge, RequestFailed
from llava.folder_lock import lock_folder

logger = logging.getLogger(__name__)

REQUESTS_AT_ONCE = 8
FAILURES_IN_A_ROW = 3

Key = tuple[Hashable, str]
"""What a review and a prompt that belong together agree in: the question's id and the hash of the prompt."""
Records = dict[Key, JsonObject]


@dataclass(frozen=True, slots=True)
class Reviews:
    """What a judge said about the responses of a run.

    Attributes:
        marks: Of the responses that have a review and, with no points, of those without an answer; in order.
        failures: How many responses have no review; they are asked for again by the next run.
        judge: Name of the model.
        date: Of the newest review, in UTC; empty if there is none.
        prompt_hash: Of everything that was sent but the answers: equal for two runs that were judged alike.
    """

    marks: tuple[Mark, ...]
    failures: int
    judge: str
    date: str
    prompt_hash: str


def review(judge: Judge, task: JudgeTask, responses: Sequence[Response], path: Path) -> Reviews:
    """Have responses scored; those that have a review of this judge and prompt are not asked for again.

    Responses without an answer are not sent and get no points. Reviews of another judge, or of another prompt
    for the same question, are moved aside.

    Args:
        judge: The judge.
        task: What it is asked. The records need ``question_id`` and ``content``, which is the reply.
        responses: What is to be scored.
        path: File of the reviews, each of which is written as soon as it is there.

    Raises:
        UserError: If the judge refuses a request or keeps failing, or the file cannot be read or written;
            what it said until then is in the file.
    """
    with explaining_writes(path):
        lock = path.with_name(f".{path.name}.lock")
        lock.mkdir(parents=True, exist_ok=True)
    with lock_folder(lock, "--id", LOCK_PATIENCE_S):
        return _review(judge, task, responses, path)


def _review(judge: Judge, task: JudgeTask, responses: Sequence[Response], path: Path) -> Reviews:
    prompts = [_Prompt.of(task, response) for response in responses]
    wanted = {prompt.key: prompt for prompt in prompts if prompt.response.error is None}
    records = _read(path, judge, task, wanted)
    missing = [prompt for key, prompt in wanted.items() if key not in records]
    if missing:
        with explaining_writes(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        with file:
            records |= _Reviewer(judge, task, file).ask_all(missing)
    marks = [_mark(task, prompt, records.get(prompt.key)) for prompt in prompts]
    return Reviews(
        marks=tuple(mark for mark in marks if mark is not None),
        failures=marks.count(None),
        judge=judge.model,
        date=max((records[key]["metadata"]["date"] for key in wanted if key in records), default=""),
        prompt_hash=_digest([_Prompt.of(task, replace(response, text="")).hash for response in responses]),
    )


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What the judge is asked about a response.

    Attributes:
        response: The response.
        messages: The chat.
        hash: Of the chat.
    """

    response: Response
    messages: Messages
    hash: str

    @classmethod
    def of(cls, task: JudgeTask, response: Response) -> _Prompt:
        messages = task.messages(response)
        return cls(response, messages, _digest(messages))

    @property
    def key(self) -> Key:
        return self.response.question.id, self.hash


class _Reviewer:
    """Asks for reviews, several at once, and appends each to a file.

    Args:
        judge: The judge.
        task: What it is asked.
        file: Gets the reviews.
    """

    def __init__(self, judge: Judge, task: JudgeTask, file: BinaryIO) -> None:
        self._judge = judge
        self._task = task
        self._file = file
        self._writing = threading.Lock()
        self._stop = threading.Event()

    def ask_all(self, prompts: Sequence[_Prompt]) -> Records:
        """Return the reviews; those that failed are left out.

        Raises:
            UserError: If the judge refuses a request or keeps failing, or the file cannot be written.
        """
        pool = ThreadPoolExecutor(REQUESTS_AT_ONCE)
        try:
            futures = {pool.submit(self._ask, prompt): prompt for prompt in prompts}
            return self._collect(futures)
        finally:
            # What is under way is waited for, and written if it comes.
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _collect(self, futures: Mapping[Future[JsonObject | None], _Prompt]) -> Records:
        records = {}
        failed_in_a_row = 0
        for future in tqdm(as_completed(futures), "reviews", len(futures), disable=None):
            prompt = futures[future]
            try:
                if record := future.result():
                    records[prompt.key] = record
                failed_in_a_row = 0
            except RequestFailed as failure:
                logger.warning("question %s has no review: %s", prompt.response.question.id, failure)
                failed_in_a_row += 1
                if failed_in_a_row == FAILURES_IN_A_ROW:
                    raise UserError(
                        f"{failed_in_a_row} questions in a row have got no review, the last one because "
                        f"{failure}; the reviews until then are kept, so run again to go on"
                    ) from failure
        return records

    def _ask(self, prompt: _Prompt) -> JsonObject | None:
        """Return and write the record of a review; None if no reply can be read."""
        reply = ""
        for temperature in self._task.temperatures:
            reply = self._judge.ask(prompt.messages, temperature, self._task.max_tokens, self._stop.wait)
            if self._task.points(reply) is not None:
                return self._write(prompt, reply)
            if self._stop.is_set():
                break
        question = prompt.response.question
        logger.warning("question %s has no review: %.80r is not a reply that can be read", question.id, reply)
        return None

    def _write(self, prompt: _Prompt, reply: str) -> JsonObject:
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        metadata = {"judge": self._judge.model, "prompt_hash": prompt.hash, "date": date}
        record = self._task.record(prompt.response, reply) | {"metadata": metadata}
        with self._writing, explaining_writes(Path(self._file.name)):
            self._file.write(json_line(record).encode())
            self._file.flush()
        return record


def _read(path: Path, judge: Judge, task: JudgeTask, wanted: Mapping[Key, _Prompt]) -> Records:
    """Return the reviews of these prompts that a file holds, and leave in it only what this judge said.

    What else it holds is moved aside; a last line that was cut short goes.
    """
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    ids = {question_id for question_id, _ in wanted}
    kept: Records = {}
    lines = [line for line in lines if line.strip()]
    for line in lines:
        record = _parse(line, judge, task)
        if record is None:
            continue
        key = (record["question_id"], record["metadata"]["prompt_hash"])
        # Reviews of further questions are those of a run that was not limited to these.
        if key in wanted or record["question_id"] not in ids:
            kept[key] = record
    if len(kept) < len(lines):
        (aside,) = move_aside(path)
        logger.warning(
            "%s held reviews of another judge or prompt: %d of %d are used; all are kept in %s",
            *(path, len(kept), len(lines), aside),
        )
    if torn or len(kept) < len(lines):
        write_jsonl(path, kept.values())
    return kept


def _parse(line: bytes, judge: Judge, task: JudgeTask) -> JsonObject | None:
    """Return a line as a review of this judge; None if it is none, such as one that LLaVA wrote."""
    try:
        record = json.loads(line)
        metadata = record["metadata"]
        texts = (metadata["prompt_hash"], metadata["date"], record["content"])
        is_whole = all(isinstance(text, str) for text in texts) and isinstance(
            record["question_id"], str | int
        )
    except (ValueError, LookupError, TypeError):
        return None
    is_own = is_whole and metadata["judge"] == judge.model
    return record if is_own and task.points(record["content"]) is not None else None


def _mark(task: JudgeTask, prompt: _Prompt, record: JsonObject | None) -> Mark | None:
    """Return what a response is worth; None if it should have a review and has none."""
    question = prompt.response.question
    if prompt.response.error is not None:
        return Mark(question.unit, 0.0, question.group)
    points = None if record is None else task.points(record["content"])
    if record is None or points is None:
        return None
    expected = str(task.reference_points(record["content"])) if task.reference_points else ""
    return Mark(question.unit, points, question.group, expected)


def _digest(document: object) -> str:
    """Return the SHA-256 of a document of texts."""
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()
