"""The pieces of texts by the embedder's tokenizer, and by that of the model it was made from."""

import logging
from collections.abc import Callable
from functools import partial
from threading import Lock

from transformers import PreTrainedTokenizerFast

from cluster.serve.answers import TextPieces
from data_pipeline.pairs.text_form import TextForm
from data_pipeline.sources.models import model_folder
from data_pipeline.tokenizers import train as tokenizers
from data_pipeline.tokenizers.pieces import Pieces, pieces_of, speller

_log = logging.getLogger("scion.serve")
_UNCUT = 1 << 20
"""Tokens of a text, more than any has."""
_Reader = Callable[[TextForm, str, int], Pieces]


class PieceReader:
    """Reads pieces. Prepares itself at the first text: a server starts without it, and most are never asked."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, source: str) -> None:
        """
        Args:
            source: folder, URI or hub name of the model that the embedder was made from; empty if it is not known.
        """
        self._tokenizer, self._source = tokenizer, source
        self._lock = Lock()
        self._readers: tuple[_Reader, _Reader | None] | None = None

    def read(self, text: str, form: TextForm, max_length: int) -> TextPieces:
        """Pieces of the text as it is embedded, and of the text itself by the source's tokenizer if there is another one."""
        with self._lock:
            if self._readers is None:
                self._readers = _reader(self._tokenizer), self._source_reader()
        own, source = self._readers
        return own(form, text, max_length), None if source is None else source(TextForm(), text, _UNCUT)

    def _source_reader(self) -> _Reader | None:
        """None, with a line in the log, for a source that cannot be loaded; None for one with the same tokenizer."""
        if not self._source:
            return None
        try:
            with model_folder(self._source, has_weights=False) as folder:
                tokenizer = tokenizers.load(folder)
        except Exception as error:  # ours, and those of any storage
            _log.warning("the page does without the source's tokenizer: %s", error)
            return None
        is_same = tokenizer.backend_tokenizer.to_str() == self._tokenizer.backend_tokenizer.to_str()
        return None if is_same else _reader(tokenizer)


def _reader(tokenizer: PreTrainedTokenizerFast) -> _Reader:
    return partial(_pieces, tokenizer, speller(tokenizer))


def _pieces(
    tokenizer: PreTrainedTokenizerFast, spell: Callable[[str], str], form: TextForm, text: str, max_length: int
) -> Pieces:
    return pieces_of(form.spans(tokenizer, text, max_length), spell)
