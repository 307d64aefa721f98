"""What has been answered so far, written answer by answer: a run that was killed goes on where it was."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava.errors import UserError
from llava.eval.files import explaining_writes, json_line, move_aside, read_json, write_json
from llava.folder_lock import lock_folder
from llava.messages import Cost

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.json"
ENTRIES = "rank-*.jsonl"
LOCK_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer to the question of an index, or why there is none.

    Attributes:
        index: Place of the question in its benchmark.
        question: Digest of the question, with its image.
        text: The answer; empty if there is none.
        error: Why there is none.
        cost: Of the answer.
        about_kept: Share of the patches that show what was asked about that stayed as tokens of their own,
            where it is known which do.
    """

    index: int
    question: str
    text: str
    error: str | None = None
    cost: Cost | None = None
    about_kept: float | None = None

    def line(self) -> str:
        """Return the entry as one line of JSON."""
        cost = None if self.cost is None else asdict(self.cost)
        return json_line(
            {
                **{"index": self.index, "question": self.question, "text": self.text},
                **{"error": self.error, "cost": cost},
                **({} if self.about_kept is None else {"about_kept": self.about_kept}),
            }
        )


class Journal:
    """A folder beside an answers file: the settings of its answers, and one file of entries per process.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def beside(cls, answers_file: Path) -> Journal:
        """Return the journal of an answers file."""
        return cls(answers_file.with_name(f"{answers_file.name}.journal"))

    def lock(self, option: str) -> AbstractContextManager[None]:
        """Keep other runs out of the folder, which is made.

        Args:
            option: What names the answers on the command line.

        Raises:
            UserError: If another run keeps it, or it cannot be made.
        """
        with explaining_writes(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        return lock_folder(self.folder, option, LOCK_PATIENCE_S)

    def open(self, settings: Mapping[str, Any], answers_file: Path) -> None:
        """Make the journal ready for answers made with these settings; for the first process of a run.

        Answers that were made with others, or without a journal, are moved aside together with their file.

        Raises:
            UserError: If the folder cannot be written.
        """
        settings = json.loads(json.dumps(settings))  # as it will be read again
        recorded = self._settings()
        if recorded != settings and (recorded is not None or answers_file.exists()):
            recorded = recorded or {}
            changed = [name for name in settings if recorded.get(name) != settings[name]]
            aside = move_aside(answers_file, self.folder / SETTINGS_FILE, *self.folder.glob(ENTRIES))
            logger.warning(
                "%s was made with other settings (%s) and begins anew; kept: %s",
                *(answers_file, ", ".join(changed), ", ".join(map(str, aside))),
            )
            recorded = None
        if recorded is None:
            write_json(self.folder / SETTINGS_FILE, settings, indent=2)

    def read(self, questions: Sequence[str]) -> dict[int, Entry]:
        """Return the latest entry of every question, of all processes of this run and of earlier ones.

        Args:
            questions: Digests of the questions; what was said to others does not count.

        Raises:
            UserError: If a file cannot be read.
        """
        entries: dict[int, Entry] = {}
        for path in sorted(self.folder.glob(ENTRIES)):
            try:
                lines = path.read_bytes().split(b"\n")
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}") from error
            # What follows the last line feed was cut short, or is being written.
            for number, line in enumerate(lines[:-1], start=1):
                entry = _read(line, path, number)
                if entry is None or questions[entry.index : entry.index + 1] != [entry.question]:
                    continue
                # A question that failed is asked again by the next run, maybe by another process.
                known = entries.get(entry.index)
                if entry.error is None or known is None or known.error is not None:
                    entries[entry.index] = entry
        return entries

    def writer(self, rank: int) -> Writer:
        """Return what appends the entries of one process.

        Raises:
            UserError: If the file cannot be written.
        """
        return Writer(self.folder / f"rank-{rank}.jsonl")

    def _settings(self) -> Mapping[str, Any] | None:
        path = self.folder / SETTINGS_FILE
        if path.exists():
            return read_json(path)
        # A run that was killed before it had written any of them; its entries cannot be told from others'.
        return {} if any(self.folder.glob(ENTRIES)) else None


class Writer:
    """Appends entries to a file, each at once.

    Args:
        path: The file; a last line that was cut short is removed.

    Raises:
        UserError: If it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with explaining_writes(path):
            self._file = path.open("ab+", buffering=0)  # so that closing has nothing left to write
            self._file.seek(0)
            self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, entry: Entry) -> None:
        """Write an entry, so that it outlives this process.

        Raises:
            UserError: If it cannot be written, such as on a full disk.
        """
        with explaining_writes(self._path):
            self._file.write(entry.line().encode())


def _read(line: bytes, path: Path, number: int) -> Entry | None:
    """Read a line; one that a failing disk left behind is as if it had not been written."""
    try:
        item = json.loads(line)
        cost = item["cost"] and Cost(**item["cost"])
        texts = str(item["question"]), str(item["text"])
        return Entry(int(item["index"]), *texts, item["error"], cost, item.get("about_kept"))
    except (ValueError, KeyError, TypeError):
        logger.warning("%s, line %d is damaged; its question is asked again", path, number)
        return None
