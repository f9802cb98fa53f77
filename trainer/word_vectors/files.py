"""Reads vector files: fastText's `.bin` and the text format `.vec` of fastText, GloVe and word2vec."""

import numpy as np
from numpy.typing import NDArray

from data_pipeline.artifacts import storage
from data_pipeline.errors import DataError
from trainer.word_vectors.fasttext import FastTextVectors
from trainer.word_vectors.vectors import TableVectors, Vectors


def read(uri: str) -> Vectors:
    """Reads a `.bin` or `.vec` file.

    Raises:
        DataError: the file does not exist, has another ending, or has a malformed line.
    """
    if not storage.exists(uri):
        raise DataError("no such file.", uri, "Give a fastText .bin or a .vec file.")
    if not uri.endswith((".bin", ".vec")):
        raise DataError("its ending is neither .bin nor .vec.", uri, "Give a fastText .bin or a .vec file.")
    with storage.local_file(uri) as path:
        return _binary(path, uri) if uri.endswith(".bin") else _text(path, uri)


def _binary(path: str, uri: str) -> FastTextVectors:
    import fasttext  # a compiled extension that only some methods need

    try:
        return FastTextVectors(fasttext.load_model(path))
    except ValueError as error:
        raise DataError(f"fastText cannot read it ({error}).", uri, "Give a model that fastText saved.") from error


def _text(path: str, uri: str) -> TableVectors:
    """Skips a header of count and width. The counts follow Zipf's law, 1 / rank, since the file has none."""
    words: list[str] = []
    rows: list[NDArray[np.float32]] = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            word, _, rest = line.rstrip("\n").partition(" ")
            row = np.fromstring(rest, np.float32, sep=" ")
            if number == 1 and row.size == 1:
                continue
            if not row.size or (rows and row.size != rows[0].size):
                width = f", the lines before {rows[0].size}" if rows else ""
                raise DataError(f"line {number} has {row.size} numbers{width}.", uri, "Fix or remove the line.")
            words.append(word)
            rows.append(row)
    if not rows:
        raise DataError("it has no vectors.", uri, "Give a file with a word and its numbers on each line.")
    return TableVectors(words, np.stack(rows), 1.0 / np.arange(1, len(words) + 1))
