"""What was found out about training data: as text for a terminal and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llava.data.records import Fault, Problem, fatal_problems, name_record, why_not_skipped
from llava.data.text_lengths import Measure, Ruler

BAR_WIDTH = 40  # characters of the longest bar
LENGTH_STEPS = 8  # rows of the histogram of lengths, up to the length at which samples are cut
NAMED = 3  # records that a remark names
LISTED = 10  # problems with images that are listed unless all are asked for

Row = tuple[str, int]
"""A label and a number of records."""


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found out about the records of a data file.

    Attributes:
        records: As they were read.
        problems: Of those that cannot be trained on, in their order.
        remarks: What is odd but does not stop training, with the names of the records it is true of.
        measures: Of every record whose turns are right, by its place in the file.
        ruler: What measured them.
        opened: Whether the images were opened.
    """

    records: Sequence[Any]
    problems: Sequence[Problem]
    remarks: dict[str, list[str]]
    measures: dict[int, Measure]
    ruler: Ruler
    opened: bool

    @property
    def on_bad_image(self) -> str:
        """What training does about bad images."""
        return self.ruler.data_args.on_bad_image

    @property
    def fatal(self) -> list[Problem]:
        """The problems that would stop training."""
        return fatal_problems(self.problems, self.records, self.on_bad_image)

    @property
    def cut(self) -> int:
        """How many records are longer than the limit."""
        return sum(measure.length > self.ruler.limit for measure in self.measures.values())

    @property
    def learn_nothing(self) -> list[str]:
        """Names of the records without an answer within the limit."""
        return [
            name_record(self.records[index], index)
            for index, measure in self.measures.items()
            if not measure.learns
        ]

    @property
    def teaches_nothing(self) -> bool:
        """Whether no record is left that a run could learn from."""
        left_out = {problem.index for problem in self.problems}
        return not any(measure.learns for index, measure in self.measures.items() if index not in left_out)

    @property
    def would_train(self) -> bool:
        """Whether a run would go through, and learn something."""
        return not (self.fatal or self.teaches_nothing)

    def counts(self) -> dict[str, int]:
        """How many there are of what; of wrong records nothing else is counted."""
        right = [self.records[index] for index in self.measures]
        images = [record["image"] for record in right if "image" in record]
        return {
            "records": len(self.records),
            "with an image": len(images),
            "text only": len(right) - len(images),
            "different images": len(set(images)),
            "turns": sum(len(record["conversations"]) for record in right),
            "questions for CLIP": sum(measure.questions for measure in self.measures.values()),
            "too long for CLIP": sum(measure.long_questions for measure in self.measures.values()),
        }

    def turn_rows(self) -> list[Row]:
        """Records by their number of turns: 1, 2, 3-4, 5-8 and so on."""
        turns = [len(self.records[index]["conversations"]) for index in self.measures]
        # 1, 2, 3-4, 5-8, ... turns take 0, 1, 2, 3, ... bits once one is taken away.
        bits = Counter((count - 1).bit_length() for count in turns)
        return _trimmed(
            [(_span(2**size // 2 + 1, 2**size), bits[size]) for size in range(max(bits, default=0) + 1)]
        )

    def length_rows(self) -> list[Row]:
        """Records by their length: equal steps up to the limit, then those that are longer."""
        step = -(-self.ruler.limit // LENGTH_STEPS)
        lengths = [measure.length for measure in self.measures.values()]
        kept = Counter(max(length - 1, 0) // step for length in lengths if length <= self.ruler.limit)
        starts = range(0, self.ruler.limit, step)
        rows = [(_span(low + 1, min(low + step, self.ruler.limit)), kept[low // step]) for low in starts]
        return _trimmed([*rows, (f"over {self.ruler.limit:,}", self.cut)])

    def document(self) -> dict[str, Any]:
        """Everything in JSON's types."""
        return {
            "would_train": self.would_train,
            "counts": self.counts(),
            "turns": dict(self.turn_rows()),
            "lengths": dict(self.length_rows()),
            "length_unit": self.ruler.unit,
            "length_counts": self.ruler.counted,
            "longest": max((measure.length for measure in self.measures.values()), default=0),
            "clip_limit": self.ruler.clip_limit,
            "learn_nothing": self.learn_nothing,
            "images_opened": self.opened,
            "problems": [{**asdict(problem), "fault": problem.fault.value} for problem in self.problems],
            "remarks": self.remarks,
        }


def report(findings: Findings, list_all: bool = False) -> Iterator[str]:
    """Write the findings as lines for a terminal; the last says whether training would run.

    Args:
        findings: What to write.
        list_all: Whether all bad images are listed, not only the first.
    """
    counts = findings.counts()
    for name in ("records", "with an image", "text only", "different images", "turns"):
        yield f"{name:<18}{counts[name]:>12,}"
    yield from ["", "Turns per record"]
    yield from histogram(findings.turn_rows())
    yield from ["", f"Length in {findings.ruler.unit} ({findings.ruler.counted})"]
    yield from histogram(findings.length_rows())
    yield ""
    yield from _notes(findings, counts)
    yield from _listing(findings.problems, list_all)
    yield verdict(findings)


def histogram(rows: Sequence[Row]) -> Iterator[str]:
    """Draw a bar per row; a row that holds anything gets at least one character."""
    total = sum(count for _, count in rows)
    longest = max((count for _, count in rows), default=0)
    for label, count in rows:
        bar = "#" * max(round(BAR_WIDTH * count / longest), 1) if count else ""
        yield f"{label:>15}  {bar:<{BAR_WIDTH}}{count:>10,}{count / total:>8.1%}"


def verdict(findings: Findings) -> str:
    """Say whether training would run, and what stops it or is left out."""
    faults = Counter(problem.fault for problem in findings.fatal or findings.problems)
    reasons = ", ".join(
        f"{faults[fault]:,} {_plural(fault.value, faults[fault])}" for fault in Fault if faults[fault]
    )
    if findings.fatal:
        return f"training would fail: {why_not_skipped(findings.fatal, findings.on_bad_image)}{reasons}"
    if findings.teaches_nothing:
        without = f" once those of {reasons} are left out" if reasons else ""
        return f"training would fail: there is nothing to learn in any record{without}"
    unseen = "" if findings.opened else "; no image was opened (--fast)"
    return f"training would run{f', without the records of {reasons}' if reasons else ''}{unseen}"


def _notes(findings: Findings, counts: dict[str, int]) -> Iterator[str]:
    """Say what is no mistake but good to know."""
    ruler, idle = findings.ruler, findings.learn_nothing
    questions = ruler.questions.capitalize()
    yield f"Longer than {ruler.limit:,} {ruler.unit} (--model_max_length), so cut: {_records(findings.cut)}"
    within = "" if ruler.tokenizer is None else " within that length"
    yield f"No answer{within}, so nothing to learn: {_records(len(idle), idle)}"
    if isinstance(ruler.clip_limit, str):
        yield f"{questions} longer than CLIP reads: {ruler.clip_limit}"
    else:
        read, long = counts["questions for CLIP"], counts["too long for CLIP"]
        yield f"{questions} longer than CLIP's {ruler.clip_limit} tokens: {long:,} of {read:,}"
    for remark, names in findings.remarks.items():
        yield f"{remark}: {_records(len(names), names)}"
    yield ""


def _records(count: int, names: Sequence[str] = ()) -> str:
    """Count records, and name the first."""
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"{count:,} {_plural('record', count)}{f' ({shown})' if names else ''}"


def _listing(problems: Sequence[Problem], list_all: bool) -> Iterator[str]:
    """List every wrong record, and the first bad images or all of them."""
    for fault in Fault:
        found = [problem.sentence for problem in problems if problem.fault is fault]
        if not found:
            continue
        shown = found if list_all or fault is Fault.RECORD else found[:LISTED]
        yield f"{_plural(fault.value, len(found)).capitalize()}: {len(found):,}"
        yield from (f"  {' '.join(sentence.split())}" for sentence in shown)
        if len(shown) < len(found):
            yield f"  ... and {len(found) - len(shown):,} more (--all lists them, --report FILE writes them)"
        yield ""


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _span(low: int, high: int) -> str:
    """Label a row of a histogram."""
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def _trimmed(rows: Sequence[Row]) -> list[Row]:
    """Leave out empty rows at both ends."""
    filled = [place for place, (_, count) in enumerate(rows) if count]
    return list(rows[filled[0] : filled[-1] + 1]) if filled else []
