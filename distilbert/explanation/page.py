"""An explanation as one page of HTML that needs nothing beside it.

H heads, L length.
"""

from __future__ import annotations

import base64
import struct
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import floor, log10

import numpy as np

from distilbert.core.pages import render
from distilbert.explanation.explaining import Answer, Explanation, Target, Token

FRAMEWORKS = {"torch": "PyTorch", "tf": "Keras", "flax": "Flax"}
ROWS = 10  # of the table
LABELLED = 48  # tokens up to which a map has room for all their names
LEVELS = 51  # of a probability, a divisor of 255; more make the page of a long text larger than mail takes
HUE = (143, 98, 208)  # of attention, seen on light and on dark ground


@dataclass(frozen=True)
class Piece:
    """A stretch of a text as it is shown; ``place`` is that of its token, if it has one."""

    text: str
    place: int | None = None


@dataclass(frozen=True)
class Word:
    """A row of the table."""

    text: str
    shown: str
    share: float  # of the largest, below 0 for what speaks against the answer


def page(explanation: Explanation) -> str:
    """The whole explanation."""
    return render(
        "distilbert.explanation",
        "page.html",
        explanation=explanation,
        framework=FRAMEWORKS[explanation.framework],
        texts=[list(pieces(text, number, explanation.tokens)) for number, text in enumerate(explanation.texts)],
        marked=list(marked(explanation.texts[-1], explanation.answers)),
        targets=[shown(target, explanation) for target in explanation.targets],
        names=[name(token, explanation) for token in explanation.tokens],
        length=len(explanation.tokens),
        labelled=LABELLED,
        layers=[[drawn(attention_LL) for attention_LL in layer_HLL] for layer_HLL in explanation.attentions],
        visible=visible,
        percent=percent,
    )


def pieces(text: str, number: int, tokens: Sequence[Token]) -> Iterator[Piece]:
    """A text, number ``number`` of those read, cut where tokens begin and end. Together they are the text."""
    end = 0
    for place, token in enumerate(tokens):
        if token.sequence != number or token.start < end or token.start == token.end:
            continue  # a character that became several tokens is shown with the first
        if token.start > end:
            yield Piece(visible(text[end : token.start]))
        end = token.end
        # What the tokenizer strips, but belongs to the character before it: accents, joiners, variants of emoji.
        while end < len(text) and (unicodedata.category(text[end]).startswith("M") or text[end] == "\u200d"):
            end += 1
        yield Piece(visible(text[token.start : end]), place)
    if end < len(text):
        yield Piece(visible(text[end:]))


def marked(text: str, answers: Sequence[Answer]) -> Iterator[tuple[str, int | None]]:
    """A text cut where answers begin and end, each stretch with its answer's number."""
    end = 0
    for number, answer in enumerate(answers):
        if answer.start is not None and answer.end is not None:
            yield visible(text[end : answer.start]), None
            yield visible(text[answer.start : answer.end]), number
            end = answer.end
    yield visible(text[end:]), None


def visible(text: str) -> str:
    """A text with pictures in place of control characters, which HTML does not allow, one for one."""
    return "".join(_picture(character) for character in text)


def _picture(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs"):
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "\ufffd"


def name(token: Token, explanation: Explanation) -> str:
    """A token as the user wrote it."""
    if token.sequence is None:
        return token.text
    return visible(explanation.texts[token.sequence][token.start : token.end])


def shown(target: Target, explanation: Explanation) -> dict[str, object]:
    """What the page says of a target."""
    largest = float(np.abs(target.contributions).max()) or 1.0
    return {
        "target": target,
        "number": explanation.answers.index(target.answer),
        "total": number(float(target.contributions.sum()), largest),
        "gained": number(target.value - target.baseline_value, largest),
        "value": number(target.value, largest),
        "baseline_value": number(target.baseline_value, largest),
        "largest": number(largest, largest),
        "numbers": [number(float(value), largest) for value in target.contributions],
        "strengths": [f"{abs(value) / largest:.2f}" for value in target.contributions.tolist()],
        "words": words(target, explanation, largest),
    }


def words(target: Target, explanation: Explanation, largest: float) -> list[Word]:
    """The words that add or take most, the pieces of each together."""
    found = []
    every = zip(explanation.tokens, target.contributions.tolist(), strict=True)
    for (sequence, _), group in groupby(every, key=lambda entry: (entry[0].sequence, entry[0].word)):
        parts = list(group)
        if sequence is not None:
            text = explanation.texts[sequence][parts[0][0].start : parts[-1][0].end]
            found.append((visible(text), sum(value for _, value in parts)))
    found.sort(key=lambda entry: -abs(entry[1]))
    most = max((abs(value) for _, value in found), default=0) or 1.0
    return [Word(text, number(value, largest), value / most) for text, value in found[:ROWS]]


def number(value: float, largest: float) -> str:
    """A contribution with its sign, in as many places as show the largest one in three figures."""
    places = min(max(2 - floor(log10(abs(largest))), 0), 12)
    return f"{value:+.{places}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """A probability, or a share."""
    return f"{100 * share:.2f} %" if 0.0001 <= abs(share) < 0.9999 else f"{100 * share:.4f} %"


def drawn(attention_LL: np.ndarray) -> tuple[str, str]:
    """A head's map as the address of an image of one pixel for each pair, and the largest probability in it."""
    largest = float(attention_LL.max())
    # Fourth roots: most probabilities of a long text are so small that in even steps they would all be 0.
    values_LL = np.rint(LEVELS * (attention_LL.astype(np.float64) / (largest or 1.0)) ** 0.25).astype(np.uint8)
    return f"data:image/png;base64,{base64.b64encode(png(values_LL)).decode()}", f"{largest:.4g}"


def png(values: np.ndarray) -> bytes:
    """An image (https://www.w3.org/TR/png) of one hue: uint8 ``values`` (height, width) are opaque at ``LEVELS``."""
    height, width = values.shape
    filtered = np.pad(values, ((0, 0), (1, 0)))  # each row begins with its filter: none
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            (b"PLTE", bytes(HUE) * (LEVELS + 1)),
            (b"tRNS", bytes(255 * level // LEVELS for level in range(LEVELS + 1))),
            (b"IDAT", zlib.compress(filtered.tobytes(), 9)),
            (b"IEND", b""),
        )
    )
