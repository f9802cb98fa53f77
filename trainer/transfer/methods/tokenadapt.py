"""TokenAdapt: a new token starts between the old pieces of its text and its nearest old tokens.

Sharthak et al., 2025 (arXiv:2505.09738), section 3. With phi a text embedder, p_1 .. p_m the old pieces of token t, and
J_t the K old tokens nearest to t under phi:

    local:   u = softmax_j cos(phi(t), phi(p_j))    l_j = |p_j| / |t|    e_loc = sum_j softmax_j( (u + l)/2 / T ) E_old[p_j]
    global:  e_glob = sum_{s in J_t} softmax_s( cos(phi(t), phi(s)) / T ) E_old[s]    those under a threshold dropped
    hybrid:  E_new[t] = (1 - g) e_loc + g e_glob              one alone where the other is missing

g = 0 is the local method, g = 1 the global one. Ours differs: shared tokens are found by canonical form, not by raw
string; lengths are in bytes, so that half a character has one; without an embedder given, phi is the aligned word vectors
of this text; a token without either part is drawn.
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
"""Old ids and their weights, which sum to one."""


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
    """Neighbours of lower cosine are dropped; above 0 made perplexity worse in the authors' own runs."""
    embedder: str | None = None
    """A folder or hub name of a text embedder as phi; the aligned word vectors of `space` when not given."""
    space: SpaceConfig = field(default_factory=SpaceConfig)

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.temperature <= 0 or not 0.0 <= self.global_weight <= 1.0:
            raise ConfigError("tokenadapt needs neighbours >= 1, temperature > 0 and global_weight between 0 and 1.")


def place(problem: Problem, config: TokenadaptConfig) -> Placement:
    """Hybrid mixtures for every new token that has old pieces or neighbours."""
    old_tokens = canonical_tokens(problem.source)
    (old_ids, old), (new_ids, new) = _embedded(problem, old_tokens, config)
    old, new = unit_rows(old), unit_rows(new)
    vector = dict(zip(new_ids.tolist(), new.double().numpy(), strict=True))
    piece_vector = dict(zip(old_ids.tolist(), old.double().numpy(), strict=True))
    nearest: dict[int, Mixture] = {}
    if config.global_weight > 0 and len(new_ids):
        columns, _ = top_softmax(new, old, config.neighbours, config.temperature, problem.executor)
        for place, number in enumerate(new_ids.tolist()):
            nearest[number] = _global(vector[number], old_ids[columns[place]], piece_vector, config)
    ids, mixtures, codes = [], [], []
    for number in problem.new.tolist():
        token = problem.tokens[number]
        assert token is not None
        pieces = split(problem.source, token) if config.global_weight < 1 else []
        local = _local(token, vector.get(number), pieces, old_tokens, piece_vector, config)
        code, mixture = _hybrid(local, nearest.get(number, {}), config.global_weight)
        if mixture:
            ids.append(number)
            codes.append(code)
            mixtures.append(sorted(mixture.items()))
    flat = [entry for mixture in mixtures for entry in mixture]
    return Placement(
        ids=np.array(ids, np.int64),
        counts=np.array([len(mixture) for mixture in mixtures], np.int64),
        indices=np.array([number for number, _ in flat], np.int64),
        weights=np.array([weight for _, weight in flat], np.float32),
        provenance=np.array(codes, np.uint8),
    )


def _embedded(
    problem: Problem, old_tokens: list[Token | None], config: TokenadaptConfig
) -> tuple[tuple[NDArray[np.int64], torch.Tensor], tuple[NDArray[np.int64], torch.Tensor]]:
    """phi of the old and of the new tokens: ids and vectors [n, A] of either."""
    import torch

    all_old = np.arange(len(old_tokens))
    if config.embedder is None:
        source, target = word_space.align_vectors(problem.texts, config.space, problem.executor)
        return (
            word_space.token_vectors(problem.source, old_tokens, all_old, source),
            word_space.token_vectors(problem.target, problem.tokens, problem.new, target),
        )
    (old_ids, old), (new_ids, new) = _texts(old_tokens, all_old), _texts(problem.tokens, problem.new)
    vectors = problem.executor.on_gpu(_encoded, config.embedder, old + new)
    return (old_ids, torch.from_numpy(vectors[: len(old)])), (new_ids, torch.from_numpy(vectors[len(old) :]))


def _texts(tokens: list[Token | None], ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
    """Those of `ids` whose tokens are text, and the texts."""
    named = [(int(number), word_space.text_of(tokens[number])) for number in ids]
    return np.array([number for number, text in named if text], np.int64), [text for _, text in named if text]


def _encoded(embedder: str, texts: list[str]) -> NDArray[np.float32]:
    """[n, A] vectors of texts."""
    import torch

    from trainer.embedder import Embedder

    loaded = Embedder.load(embedder)
    if torch.cuda.is_available():
        loaded.model.to("cuda")
    return np.array(loaded.encode(texts), np.float32)


def _local(
    token: Token,
    vector: NDArray[np.float64] | None,
    pieces: list[int],
    old_tokens: list[Token | None],
    piece_vector: dict[int, NDArray[np.float64]],
    config: TokenadaptConfig,
) -> Mixture:
    """Pieces weighted by likeness and length; by length alone where phi does not know the token."""
    if not pieces:
        return {}
    lengths = np.array([_length(old_tokens[piece]) for piece in pieces]) / max(1, _length(token))
    known = vector is not None
    cosines = [float(vector @ piece_vector[p]) if known and p in piece_vector else 0.0 for p in pieces]  # type: ignore[operator]
    likeness = _softmax(np.array(cosines))
    weights = _softmax((likeness + lengths) / 2 / config.temperature)
    mixture: Mixture = {}
    for piece, weight in zip(pieces, weights, strict=True):
        mixture[piece] = mixture.get(piece, 0.0) + float(weight)
    return mixture


def _global(
    vector: NDArray[np.float64],
    nearest: NDArray[np.int64],
    piece_vector: dict[int, NDArray[np.float64]],
    config: TokenadaptConfig,
) -> Mixture:
    cosines = {int(number): float(vector @ piece_vector[int(number)]) for number in nearest}
    kept = {number: cosine for number, cosine in cosines.items() if cosine >= config.threshold}
    if not kept:
        return {}
    weights = _softmax(np.array(list(kept.values())) / config.temperature)
    return dict(zip(kept, weights.tolist(), strict=True))


def _hybrid(local: Mixture, nearest: Mixture, share: float) -> tuple[Provenance, Mixture]:
    if not local or not nearest:
        return (Provenance.COMPOSITION, local) if local else (Provenance.NEIGHBOURS, nearest)
    both = {number: (1 - share) * weight for number, weight in local.items()}
    for number, weight in nearest.items():
        both[number] = both.get(number, 0.0) + share * weight
    return Provenance.HYBRID, both


def _length(token: Token | None) -> int:
    return 0 if token is None else len(token.payload)


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = np.exp(values - values.max())
    return raised / raised.sum()
