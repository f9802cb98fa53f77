"""TokenAdapt: a new token starts as a mixture of the source pieces of its text and its nearest source tokens.

Sharthak et al., 2025 (arXiv:2505.09738), section 3. With a text embedder phi, the source pieces p_1 .. p_m of token t, and
the K source tokens J_t nearest to t under phi:

    local:   u = softmax_j cos(phi(t), phi(p_j))    l_j = |p_j| / |t|    e_loc = sum_j softmax_j( (u + l)/2 / T ) E_old[p_j]
    global:  e_glob = sum_{s in J_t} softmax_s( cos(phi(t), phi(s)) / T ) E_old[s]    without those below the threshold
    hybrid:  E_new[t] = (1 - g) e_loc + g e_glob              only one of them if the other is missing

g = 0 is the local method, g = 1 the global one.

Differences from the paper: shared tokens are matched by canonical form, not by raw string. Lengths are in bytes, so half a
character has a length. Without an embedder, phi is the aligned word vectors of this text. A token with neither part gets a
random row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import ConfigError
from data_pipeline.tokenizers.canonical import Token, canonical_tokens
from trainer.transfer.methods.fvt import split
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.transfer.search.neighbours import top_softmax, unit_rows
from trainer.word_vectors import word_space
from trainer.word_vectors.word_space import SpaceConfig

if TYPE_CHECKING:
    import torch

Mixture = dict[int, float]
"""Weights by source id; they sum to one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenadaptConfig:
    """The reference code's settings."""

    temperature: float = 0.3
    """T"""
    neighbours: int = 3
    """K"""
    global_weight: float = 0.3
    """g"""
    threshold: float = 0.0
    """Neighbours with a lower cosine are dropped; a threshold above 0 made perplexity worse in the authors' runs."""
    embedder: str | None = None
    """A folder or hub name of a text embedder as phi; if not given, phi is the aligned word vectors of `space`."""
    space: SpaceConfig = field(default_factory=SpaceConfig)

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.temperature <= 0 or not 0.0 <= self.global_weight <= 1.0:
            raise ConfigError("tokenadapt needs neighbours >= 1, temperature > 0 and global_weight between 0 and 1.")


def place(problem: Problem, config: TokenadaptConfig) -> Placement:
    """Places every new token that has source pieces or neighbours."""
    source_tokens = canonical_tokens(problem.source)
    (source_ids, source_vectors), (new_ids, new_vectors) = _phi(problem, source_tokens, config)
    source_vectors, new_vectors = unit_rows(source_vectors), unit_rows(new_vectors)
    vector_of = dict(zip(new_ids.tolist(), new_vectors.double().numpy(), strict=True))
    piece_vectors = dict(zip(source_ids.tolist(), source_vectors.double().numpy(), strict=True))
    nearest: dict[int, Mixture] = {}
    if config.global_weight > 0 and len(new_ids):
        columns, _ = top_softmax(new_vectors, source_vectors, config.neighbours, config.temperature, problem.executor)
        for row, token_id in enumerate(new_ids.tolist()):
            nearest[token_id] = _global_mixture(vector_of[token_id], source_ids[columns[row]], piece_vectors, config)
    ids, mixtures, codes = [], [], []
    for token_id in problem.new.tolist():
        token = problem.tokens[token_id]
        assert token is not None
        pieces = split(problem.source, token) if config.global_weight < 1 else []
        local = _local_mixture(token, vector_of.get(token_id), pieces, source_tokens, piece_vectors, config)
        code, mixture = _combine(local, nearest.get(token_id, {}), config.global_weight)
        if mixture:
            ids.append(token_id)
            codes.append(code)
            mixtures.append(sorted(mixture.items()))
    flat = [entry for mixture in mixtures for entry in mixture]
    return Placement(
        ids=np.array(ids, np.int64),
        counts=np.array([len(mixture) for mixture in mixtures], np.int64),
        indices=np.array([token_id for token_id, _ in flat], np.int64),
        weights=np.array([weight for _, weight in flat], np.float32),
        provenance=np.array(codes, np.uint8),
    )


def _phi(
    problem: Problem, source_tokens: list[Token | None], config: TokenadaptConfig
) -> tuple[tuple[NDArray[np.int64], torch.Tensor], tuple[NDArray[np.int64], torch.Tensor]]:
    """phi of the source tokens and of the new tokens: ids and vectors [n, A] of each."""
    import torch

    all_source_ids = np.arange(len(source_tokens))
    if config.embedder is None:
        source, target = word_space.align_vectors(problem.texts, config.space, problem.executor)
        return (
            word_space.token_vectors(problem.source, source_tokens, all_source_ids, source),
            word_space.token_vectors(problem.target, problem.tokens, problem.new, target),
        )
    (source_ids, source_texts), (new_ids, new_texts) = (
        _texts(source_tokens, all_source_ids),
        _texts(problem.tokens, problem.new),
    )
    vectors = problem.executor.on_gpu(embed_texts, config.embedder, source_texts + new_texts)
    return (source_ids, torch.from_numpy(vectors[: len(source_texts)])), (
        new_ids,
        torch.from_numpy(vectors[len(source_texts) :]),
    )


def _texts(tokens: list[Token | None], ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
    """The `ids` of tokens that are text, and their texts."""
    texts_by_id = [(int(number), word_space.text_of(tokens[number])) for number in ids]
    return np.array([number for number, text in texts_by_id if text], np.int64), [text for _, text in texts_by_id if text]


def embed_texts(embedder: str, texts: list[str]) -> NDArray[np.float32]:
    """Loads an embedder, on the GPU if there is one, and returns the vectors of `texts`, [n, A].

    Raises:
        ModelError: the folder holds no embedder.
    """
    import torch

    from trainer.embedder import Embedder

    loaded = Embedder.load(embedder)
    if torch.cuda.is_available():
        loaded.model.to("cuda")
    return np.array(loaded.encode(texts), np.float32)


def _local_mixture(
    token: Token,
    vector: NDArray[np.float64] | None,
    pieces: list[int],
    source_tokens: list[Token | None],
    piece_vectors: dict[int, NDArray[np.float64]],
    config: TokenadaptConfig,
) -> Mixture:
    """Pieces weighted by similarity and length; by length alone if phi has no vector of the token."""
    if not pieces:
        return {}
    lengths = np.array([_length(source_tokens[piece]) for piece in pieces]) / max(1, _length(token))
    has_vector = vector is not None
    cosines = [float(vector @ piece_vectors[p]) if has_vector and p in piece_vectors else 0.0 for p in pieces]  # type: ignore[operator]
    similarities = _softmax(np.array(cosines))
    weights = _softmax((similarities + lengths) / 2 / config.temperature)
    mixture: Mixture = {}
    for piece, weight in zip(pieces, weights, strict=True):
        mixture[piece] = mixture.get(piece, 0.0) + float(weight)
    return mixture


def _global_mixture(
    vector: NDArray[np.float64],
    nearest: NDArray[np.int64],
    piece_vectors: dict[int, NDArray[np.float64]],
    config: TokenadaptConfig,
) -> Mixture:
    """The nearest source tokens above the cosine threshold, weighted by softmax of their cosines; empty if there are none."""
    cosines = {int(number): float(vector @ piece_vectors[int(number)]) for number in nearest}
    near = {number: cosine for number, cosine in cosines.items() if cosine >= config.threshold}
    if not near:
        return {}
    weights = _softmax(np.array(list(near.values())) / config.temperature)
    return dict(zip(near, weights.tolist(), strict=True))


def _combine(local: Mixture, nearest: Mixture, share: float) -> tuple[Provenance, Mixture]:
    if not local or not nearest:
        return (Provenance.COMPOSITION, local) if local else (Provenance.NEIGHBOURS, nearest)
    mixture = {number: (1 - share) * weight for number, weight in local.items()}
    for number, weight in nearest.items():
        mixture[number] = mixture.get(number, 0.0) + share * weight
    return Provenance.HYBRID, mixture


def _length(token: Token | None) -> int:
    return 0 if token is None else len(token.payload)


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()
