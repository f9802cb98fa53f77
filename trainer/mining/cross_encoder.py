"""Scores of a cross-encoder: a sequence-classification model with one output reads both texts at once."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from data_pipeline.errors import ModelError
from data_pipeline.pairs.batch import batches_by_length
from data_pipeline.sources.models import model_folder
from data_pipeline.tokenizers import train as tokenizers
from trainer.embedder import BATCH_TOKENS, with_padding
from trainer.models import loading


class CrossEncoder:
    """A teacher. A score is the same in any batch, to 1e-5."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
        self.model, self.tokenizer, self._max_length = model.eval(), with_padding(tokenizer), max_length
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self.tokenizer.pad_token_id

    @classmethod
    def load(cls, uri: str, max_length: int) -> "CrossEncoder":
        """Loads the folder of a sequence-classification model.

        Raises:
            ModelError: it has several outputs, no trained head, or too few positions.
        """
        check(uri, max_length)
        with model_folder(uri) as folder, loading.quiet():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = tokenizers.load(folder)
        if missing := sorted(info["missing_keys"]):
            raise ModelError(
                f"{missing[0]} is not in its weights.", f"mine.teacher={uri}", "Name a trained sequence-classification model."
            )
        return cls(model, tokenizer, max_length)

    def score(self, lefts: Sequence[str], rights: Sequence[str]) -> NDArray[np.float32]:
        """The logit of each couple of texts, fp32 [n]; the longer text of a couple is cut first."""
        if not lefts:
            return np.zeros(0, np.float32)
        encoded = self.tokenizer(
            list(lefts), list(rights), truncation="longest_first", max_length=self._max_length, padding=False
        )
        scores = torch.empty(len(lefts))
        with torch.inference_mode():
            for places in batches_by_length(encoded.input_ids, BATCH_TOKENS):
                batch = self.tokenizer.pad({name: [rows[place] for place in places] for name, rows in encoded.items()},
                                           return_tensors="pt")  # fmt: skip
                logits = self.model(**batch.to(self.model.device)).logits
                scores[places] = logits[:, 0].float().cpu()
        return scores.numpy()


def check(uri: str, max_length: int) -> None:
    """Checks by its config.json that a model can be a teacher.

    Raises:
        ModelError: it has several outputs, or too few positions.
    """
    config = loading.model_config(uri)
    architectures = config.architectures or []
    if architectures and not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ModelError(
            f"it is a {architectures[0]}, no cross-encoder.", f"mine.teacher={uri}", "Name a sequence-classification model."
        )
    if config.num_labels != 1:
        raise ModelError(
            f"it has {config.num_labels} outputs.", f"mine.teacher={uri}", "Name a sequence-classification model with one."
        )
    if max_length > (longest := loading.max_length(config)):
        raise ModelError(
            f"its positions reach {longest}, not {max_length}.", f"mine.teacher={uri}", f"Set mine.teacher_length={longest}."
        )
