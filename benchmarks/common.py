"""What the speed measurements share: the work, and how it is timed."""

import statistics
import time
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer

BATCH = 32


def read_texts(path):
    """A file's texts, one a line, without a tab and what follows it."""
    lines = (line.rsplit("\t", 1)[0].strip() for line in Path(path).read_text("utf-8").splitlines())
    return [line for line in lines if line]


def batches(path, vocabulary):
    """Ids and masks of a file's first 512 texts, one a line, sorted by length and padded to the longest of a batch."""
    tokenizer = BertWordPieceTokenizer(vocabulary, lowercase=True)
    encodings = tokenizer.encode_batch(read_texts(path)[:512])
    rows = sorted((encoding.ids[:512] for encoding in encodings), key=len, reverse=True)
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        ids = np.zeros((len(part), len(part[0])), np.int64)
        for index, row in enumerate(part):
            ids[index, : len(row)] = row
        yield ids, (ids != 0).astype(np.int64)


def seconds(run, repeats):
    """The median time of a run, after two that do not count."""
    run()
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
