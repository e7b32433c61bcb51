"""Labelled examples in files, or on standard input: texts, words, questions, choices; compressed too, by the name.

Each example says where it stands, so that whoever finds fault with it can tell. Files are untrusted: what one unfolds
to is limited, and nothing in it is run.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from distilbert.core.errors import InputError
from distilbert.core.records import COMPRESSED, SUFFIXES, Layout, open_records
from distilbert.pipelines.pipeline import read_text

logger = logging.getLogger("distilbert")

LARGEST = 1 << 30  # characters, unpacked: a small .gz may hold more than the memory does
LINES = 4096  # read at a time

# The names that public data sets give their fields: of texts, each with that of a second text, and of labels.
TEXT_FIELDS = {
    "text": "text_pair",
    "sentence1": "sentence2",
    "premise": "hypothesis",
    "question1": "question2",
    "question": "sentence",
    "sentence": None,
    "review": None,
}
LABEL_FIELDS = ("label", "labels", "gold_label", "target", "class", "sentiment", "score")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class LabelledText:
    """A text, perhaps a second one, and the label as the file has it."""

    where: str
    text: str
    text_pair: str | None
    label: Any


@dataclass(frozen=True)
class Sentence:
    """Words, each with its label; each on a line of its own, from ``line`` on."""

    line: int
    words: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Question:
    """A question on a context, with all answers that are right; none where the context has none."""

    question: str
    context: str
    answers: list[str]
    starts: list[int | None]  # where in the context each answer begins, if the file says so
    may_be_unanswerable: bool  # the file says of each question whether it has an answer, as SQuAD 2.0 does


@dataclass(frozen=True)
class ChoiceQuestion:
    """A text, what may follow it, and the number of what does."""

    where: str
    prompt: str
    choices: list[str]
    label: int


def read_lines(name: str) -> Iterator[tuple[int, str]]:
    """Each line with its number, without what ends it.

    Raises:
        InputError: damaged, or too large.
    """
    size = 0
    with open_records(name, LINES, Layout("text")) as windows:
        for number, line in enumerate(chain.from_iterable(windows), 1):
            size += len(line)
            if size > LARGEST:
                raise InputError(
                    f"{name}: holds more than {LARGEST >> 20:,} million characters; evaluate on a part of it"
                )
            yield number, line


def read_texts(
    name: str, text_field: str | None = None, text_pair_field: str | None = None, label_field: str | None = None
) -> Iterator[LabelledText]:
    """Read labelled texts: ``.csv``; ``.jsonl`` or ``.json``, one object a line; all else is split at tabs, unquoted.

    Fields are found by the names in ``TEXT_FIELDS`` and ``LABEL_FIELDS``. A table without these in its first line has
    no header: its columns are the text and the label, or two texts and the label.

    Args:
        name: of the file, or ``-`` for standard input.
        text_field: the field with the text: a name, or in a table the number of a column, from 1.
        text_pair_field: that with a second text.
        label_field: that with the label.

    Raises:
        InputError: a field is missing, or a line cannot be read.
    """
    asked = {"text": text_field, "text pair": text_pair_field, "label": label_field}
    is_json = _kind(name) in ("jsonl", ".json")
    records = read_objects(name) if is_json else _read_table(name, [field for field in asked.values() if field])
    fields: dict[str, str | None] = {}
    for number, record in records:
        where = f"{name}:{number}"
        fields = fields or _choose_fields(list(record), asked, where)
        for what, field in fields.items():
            if field is not None and field not in record:
                advice = f"name that of the {what} with --{what.replace(' ', '-')}-field"
                raise InputError(f"{where}: no field {field!r}, only {', '.join(record)}; {advice}")
        text, pair, label = (None if field is None else record[field] for field in fields.values())
        with _at(where):
            second = None if pair is None else read_text({"text_pair": pair}, "text_pair")
            yield LabelledText(where, read_text({"text": text}), second, label)


def _kind(name: str) -> str:
    """How a file is written, by its name."""
    path = Path(name.lower())
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    return SUFFIXES.get(suffix, suffix)


@contextmanager
def _at(where: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _choose_fields(names: Sequence[str], asked: Mapping[str, str | None], where: str) -> dict[str, str | None]:
    """Which fields hold text, second text and label."""
    text, pair, label = asked.values()
    if all(name.isdecimal() for name in names):  # columns without a header
        rest = [name for name in names if name not in asked.values()]
        if len(names) not in (2, 3) and not (text and label):
            raise InputError(
                f"{where}: {len(names)} columns without known names, expected text and label, or two texts and the "
                "label; number them with --text-field and --label-field"
            )
        label = label or rest.pop()
        if text is None:
            text, *others = rest
            pair = pair or next(iter(others), None)
        return {"text": text, "text pair": pair, "label": label}
    known = {name.casefold(): name for name in names}
    if text is None:
        key = next((name for name in TEXT_FIELDS if name in known), None)
        if key is None:
            raise InputError(f"{where}: which of {', '.join(names)} is the text? Name it with --text-field")
        text = known[key]
        pair = pair or known.get(TEXT_FIELDS[key] or "")
    if label is None:
        label = next((known[name] for name in LABEL_FIELDS if name in known), None)
        if label is None:
            raise InputError(f"{where}: which of {', '.join(names)} is the label? Name it with --label-field")
    return {"text": text, "text pair": pair, "label": label}


def read_objects(name: str) -> Iterator[tuple[int, Record]]:
    """The object on each line of JSON that is not blank, with the line's number.

    Raises:
        InputError: a line holds something else.
    """
    for number, line in read_lines(name):
        if not line.strip():
            continue
        record = _parse(line, f"{name}:{number}")
        if not isinstance(record, dict):
            raise InputError(f"{name}:{number}: expected a JSON object on each line, found {line[:40]!r}")
        yield number, record


def _parse(content: str, where: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise InputError(f"{where}: expected JSON: {error}") from None
    except RecursionError:
        raise InputError(f"{where}: expected JSON, found brackets nested too deeply") from None


def _read_table(name: str, asked: Sequence[str]) -> Iterator[tuple[int, Record]]:
    """Rows under the names in the first one, or under the columns' numbers where that is no header."""
    names: list[str] = []
    for number, cells in _read_csv(name) if _kind(name) == "csv" else _read_tabs(name):
        if not names:
            lower = {cell.casefold() for cell in cells}
            known = [bool(lower & set(fields)) for fields in (TEXT_FIELDS, LABEL_FIELDS)]
            if all(known) or any(not field.isdecimal() for field in asked):
                names = cells
                if repeated := [cell for cell in names if cell and names.count(cell) > 1]:
                    raise InputError(f"{name}:{number}: two columns are called {repeated[0]!r}; give them other names")
                continue
            if any(known) and not asked:
                raise InputError(
                    f"{name}:{number}: is {', '.join(cells)!r:.80} a header? Then name the columns with --text-field "
                    "and --label-field; if it is an example, number them"
                )
            names = [str(column) for column in range(1, len(cells) + 1)]
        if len(cells) != len(names):
            raise InputError(f"{name}:{number}: has {len(cells)} columns, expected {len(names)} as in the first line")
        yield number, dict(zip(names, cells, strict=True))


def _read_tabs(name: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(name):
        if line.strip():
            yield number, line.split("\t")


def _read_csv(name: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(LARGEST)
    rows = csv.reader((f"{line}\n" for _, line in read_lines(name)), strict=True)
    while True:
        number = rows.line_num + 1  # a quoted cell may go over several
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{name}:{number}: expected comma-separated values: {error}") from None
        if row:
            yield number, row


def read_sentences(name: str) -> Iterator[Sentence]:
    """Read words with labels, as the CoNLL tasks have them: a word a line, its label in the last column.

    Columns are parted by tabs, or in a line without any by spaces. A blank line ends a sentence. So does one that holds
    no word and label, as real files do, with a warning; and ``-DOCSTART-``.

    Raises:
        InputError: the file cannot be read.
    """
    irregular: list[int] = []
    words: list[str] = []
    labels: list[str] = []
    number = 0
    for number, line in read_lines(name):
        cells = [cell.strip() for cell in line.split("\t")] if "\t" in line else line.strip(" ").split(" ")
        is_regular = len(cells) > 1 and cells[0] and cells[-1]
        if is_regular and cells[0] != "-DOCSTART-":
            words.append(cells[0])
            labels.append(cells[-1])
            continue
        if line.strip() and not is_regular:
            irregular.append(number)
        if words:
            yield Sentence(number - len(words), words, labels)
            words, labels = [], []
    if words:
        yield Sentence(number + 1 - len(words), words, labels)
    if irregular:
        logger.warning(
            "%s:%d: holds no word and label%s; taken as the end of a sentence",
            name,
            irregular[0],
            f", as {len(irregular) - 1:,} other lines" if irregular[1:] else "",
        )


def read_questions(name: str) -> Iterator[Question]:
    """Read questions: a file in SQuAD's format, 1.1 or 2.0; or ``.jsonl``, one question a line.

    A line has ``question``, ``context`` and ``answers``: texts, objects with ``text``, or an object with a list
    ``text``.

    Raises:
        InputError: something is missing, or of another type.
    """
    if _kind(name) == "jsonl":
        for number, record in read_objects(name):
            yield _question(record, record, f"{name}:{number}")
        return
    document = _parse("\n".join(line for _, line in read_lines(name)), name)
    for n, article in enumerate(_list(document, "data", f"{name}"), 1):
        for m, paragraph in enumerate(_list(article, "paragraphs", f"{name}: article {n}"), 1):
            where = f"{name}: article {n}, paragraph {m}"
            for k, question in enumerate(_list(paragraph, "qas", where), 1):
                yield _question(question, paragraph, f"{where}, question {k}")


def read_choices(name: str) -> Iterator[ChoiceQuestion]:
    """Read texts with choices: one a line, with ``prompt``, ``choices`` and ``label``, the number of the right one.

    Raises:
        InputError: something is missing, or of another type.
    """
    for number, record in read_objects(name):
        where, label, choices = f"{name}:{number}", record.get("label"), record.get("choices")
        if not isinstance(choices, list) or type(label) is not int or not 0 <= label < len(choices):
            raise InputError(f"{where}: expected choices, a list, and label, the number of one from 0")
        with _at(where):
            texts = [read_text(choice, "a choice") for choice in choices]
            yield ChoiceQuestion(where, read_text(record, "prompt"), texts, label)


def _question(record: Any, holder: Any, where: str) -> Question:
    """A question, of what the file has about it and about its context."""
    for part in (record, holder):
        if not isinstance(part, dict):
            raise InputError(f"{where}: found {part!r:.40}, expected an object")
    answers: Any = record.get("answers")
    starts: Any = None
    if isinstance(answers, dict):
        answers, starts = answers.get("text"), answers.get("answer_start")
    if not isinstance(answers, list):
        raise InputError(f"{where}: answers is {answers!r:.40}, expected a list")
    if starts is None:
        starts = [answer.get("answer_start") if isinstance(answer, dict) else None for answer in answers]
    if not isinstance(starts, list) or len(starts) != len(answers) or {type(s) for s in starts} - {int, type(None)}:
        raise InputError(f"{where}: answer_start is {starts!r:.40}, expected a number for each answer")
    with _at(where):
        return Question(
            read_text(record, "question"),
            read_text(holder, "context"),
            [read_text(answer) for answer in answers],
            starts,
            may_be_unanswerable=not answers or "is_impossible" in record,
        )


def _list(record: Any, name: str, where: str) -> list[Any]:
    found = record.get(name) if isinstance(record, dict) else None
    if not isinstance(found, list):
        raise InputError(f"{where}: {name} is {found!r:.40}, expected a list, as in SQuAD's files")
    return found
