"""More texts of a kind, for a teacher to speak about: pieces, mixtures and variations of those there are.

After Tang et al. 2019 (https://arxiv.org/abs/1903.12136), who mask words and take pieces of sentences, and Jiao et al.
2020 (https://arxiv.org/abs/1909.10351), who put similar words in place; here they are neighbours among the teacher's
own word embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

NEIGHBOURS = 15  # of a word, to choose from
LONGEST_PIECE = 15  # words
LONGEST = 50
BLOCK = 1024
# How often each kind of text is made.
KINDS = {"piece": 0.2, "similar": 0.35, "similar piece": 0.2, "masked": 0.1, "spliced": 0.15}
RATES = (0.1, 0.2, 0.4)  # of words that are replaced by similar ones
MASK_RATE = 0.1


def augment(
    texts: Sequence[str],
    count: int,
    similar: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
    mask_token: str = "[MASK]",
) -> Iterator[str]:
    """Texts made from others, none twice.

    Args:
        texts: words with spaces between them.
        count: how many to try; what comes up again is left out.
        similar: by word, those that may take its place, as ``similar_words`` gives them.
        seed: decides.
        mask_token: what stands for a hidden word.
    """
    rng = np.random.default_rng(seed)
    split = [words for text in texts if (words := text.split())]
    seen = set(texts)
    for kind in rng.choice(list(KINDS), count, p=list(KINDS.values())):
        words = split[rng.integers(len(split))]
        if kind == "spliced":
            other = split[rng.integers(len(split))]
            words = words[: rng.integers(len(words)) + 1] + other[rng.integers(len(other)) :]
        if "piece" in kind:
            length = 1 + rng.integers(min(LONGEST_PIECE, len(words)))
            start = rng.integers(len(words) - length + 1)
            words = words[start : start + length]
        if "similar" in kind:
            is_chosen = rng.random(len(words)) < rng.choice(RATES)
            words = [
                options[int(rng.integers(len(options)))] if chosen and (options := similar.get(word, ())) else word
                for word, chosen in zip(words, is_chosen, strict=True)
            ]
        if kind == "masked":
            is_hidden = rng.random(len(words)) < MASK_RATE
            words = [mask_token if hidden else word for word, hidden in zip(words, is_hidden, strict=True)]
        text = " ".join(words[:LONGEST])
        if text not in seen:
            seen.add(text)
            yield text


def similar_words(words: Sequence[str], vocabulary: Mapping[str, int], embeddings: np.ndarray) -> dict[str, list[str]]:
    """The nearest whole words of each that the vocabulary has, by the cosine between centred embeddings.

    Args:
        words: which to look up; those that are no single token are left out.
        vocabulary: numbers of rows by token.
        embeddings: of tokens (V, D).
    """
    names = [name for name in vocabulary if name.isalpha() and len(name) > 1]
    vectors = embeddings[[vocabulary[name] for name in names]].astype(np.float32)
    vectors -= vectors.mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    places = {name: place for place, name in enumerate(names)}
    asked = sorted({word for word in words if word in places})
    found = {}
    for start in range(0, len(asked), BLOCK):
        block = asked[start : start + BLOCK]
        likeness = vectors[[places[word] for word in block]] @ vectors.T
        best = np.argpartition(-likeness, NEIGHBOURS, axis=1)[:, : NEIGHBOURS + 1]
        for word, row, order in zip(block, best, likeness, strict=True):
            ranked = sorted(row, key=lambda place: (-order[place], place))
            found[word] = [names[place] for place in ranked if names[place] != word][:NEIGHBOURS]
    return found
