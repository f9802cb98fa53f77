"""Whether packed rows give what the model's own forward gives for each document alone, and the leanest way that does.

Two rows of random tokens, one document in the first, several and padding in the second, go through the packed forward. Each
document also goes through the model alone, as transformers runs it. A way whose logits differ is not used: its mask may lack
the model's window, or the model may ignore the mask; positions may start elsewhere; a kernel may leave a soft cap out. After
packed rows come rows of one document each, padded. Where those differ too, the architecture is refused.

The ranks of a training check together: a way that fails on one of them is given up on all before the next is tried. Under
ZeRO-3 they gather weights for each other, so that they must be at the same layer of the same way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, get_args

import torch

from data_pipeline.errors import ModelError, reason
from data_pipeline.feed.target_batch import TargetBatch
from trainer.collectives import first_failure
from trainer.models.heads import Head, HeadTap
from trainer.models.packed_attention import Kernel

_PLACES = 16
"""Places of a document whose logits are compared."""
_SHARES = (0.45, 0.3, 0.15)
"""Parts of the second row that its documents take; the rest is padding."""
_SEED = 20
_IMPOSSIBLE = -60.0
"""A log-probability below which a token counts as one that cannot be predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardPath:
    """How a language model computes a batch."""

    kernel: Kernel | None
    """Of the attention on packed rows; None for rows of one document each, with the model's own attention."""
    head: Head

    @property
    def generality(self) -> tuple[int, int]:
        """From lean to general."""
        return (*get_args(Kernel), None).index(self.kernel), get_args(Head).index(self.head)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardCheck:
    """The way that a check found."""

    path: ForwardPath
    difference: float
    """Of its log-probabilities and the model's own, at the worst place, as a part of their spread."""
    tolerance: float
    """What the precision allows."""
    reasons: tuple[str, ...] = ()
    """Why leaner ways were left out."""


class OtherRankError(Exception):
    """Another rank has failed in the middle of what all of them compute; says why."""


class Encoder(Protocol):
    """What the check needs of `DualEncoder`."""

    model: Any
    training: bool

    def encode(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor: ...

    def eval(self) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...


class Checkable(Protocol):
    """What the check needs of `PackedLM`."""

    model: Any
    causal: bool
    own_attention: str
    tap: HeadTap

    @property
    def kernels(self) -> tuple[Kernel, ...]: ...

    def use_path(self, way: ForwardPath) -> None: ...

    def logits(self, batch: TargetBatch) -> torch.Tensor: ...

    def eval(self) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...


def kernels(gpu: bool, dropout: float) -> tuple[Kernel, ...]:
    """Those that may be tried, the fastest first."""
    return ("flex", "blocks", "sdpa", "eager") if gpu and not dropout else ("sdpa", "eager")


def tolerance(dtype: torch.dtype) -> float:
    """The largest difference that is still rounding: half of the digits have to agree, 3e-4 in fp32, 0.09 in bf16."""
    return float(torch.finfo(dtype).eps ** 0.5)


def check(module: Checkable, length: int) -> ForwardCheck:
    """The leanest way of `module` whose logits are the model's own.

    Args:
        length: tokens in a row of the run; a window that is wider makes no difference there.

    Raises:
        ModelError: no way gives them.
    """
    weight = next(module.model.parameters())
    batch, close = check_batch(module, length).to(weight.device), tolerance(weight.dtype)
    with _evaluating(module):
        found, failure = _attempt(partial(_own_logits, module, batch, close))
        if failure:
            raise ModelError(
                f"the forward of {type(module.model).__name__} fails on {length} random tokens ({failure}).",
                _named(module.model),
                "Take shorter rows (shard.length), or another model.",
            )
        head, expected = found
        tried: list[str] = []
        for kernel in (*module.kernels, None):
            way = ForwardPath(kernel=kernel, head=head)
            rows = "rows of one document" if kernel is None else f"packed rows with {kernel} attention"
            difference, failure = _attempt(partial(_difference, module, way, batch, expected))
            if failure:
                tried.append(f"{rows} fail ({failure})")
            elif wrong := first_failure("" if difference <= close else f"differ by {difference:.2g}"):
                tried.append(f"{rows} {wrong}")
            else:
                _check_causality(module, batch, close)
                return ForwardCheck(path=way, difference=difference, tolerance=close, reasons=tuple(tried))
    raise ModelError(
        f"{type(module.model).__name__} does not give the same logits for a document in a batch as alone: {'; '.join(tried)}; "
        f"{close:.2g} is allowed.",
        _named(module.model),
        "Its forward is not one that Scion can train: report the architecture, or take another model.",
    )


def _attempt(do: Callable[[], Any]) -> tuple[Any, str]:
    """What `do` gives, and why it failed, on every rank alike; empty if it did on none."""
    made, failure = None, ""
    try:
        made = do()
    except OtherRankError as error:
        return None, str(error)
    except Exception as error:  # whatever an architecture raises on arguments that it does not know
        failure = reason(error)
    return made, first_failure(failure)


def _own_logits(module: Checkable, batch: TargetBatch, close: float) -> tuple[Head, torch.Tensor]:
    """The leanest head, and the logits of each document alone."""
    module.use_path(ForwardPath(kernel=None, head="whole"))
    head = module.tap.leanest_head(module.model, batch.input_ids[:1, :8], close)
    return head, torch.cat(list(logits_per_document(module, batch, head)))


def _named(model: Any) -> str:
    return f"model {model.name_or_path or model.config.model_type}"


def _check_causality(module: Checkable, batch: TargetBatch, close: float) -> None:
    """Whether a decoder's logits leave out the tokens that they are to predict.

    Raises:
        ModelError: they do not.
    """
    if not module.causal:
        return
    row = batch.input_ids[:1]
    half, other = row.shape[1] // 2, row.clone()
    other[0, half:] = row[0, half:].flip(0)
    module.use_path(ForwardPath(kernel=None, head="whole"))
    before, after = (module.model(input_ids=one).logits[0, :half].float().log_softmax(dim=1) for one in (row, other))
    possible = before > _IMPOSSIBLE
    if float(((before - after).abs() * possible).max()) > close * float(before[possible].std()):
        raise ModelError(
            f"{type(module.model).__name__} predicts a token from those behind it: it is no causal language model as it is "
            "configured here.",
            _named(module.model),
            "Set is_decoder in its config.json if it was trained so, or take its masked language model.",
        )


def check_padding(encoder: Encoder, length: int) -> ForwardCheck:
    """Whether texts have the same vectors in a padded batch as alone.

    Args:
        length: tokens of the longest text.

    Raises:
        ModelError: they have not.
    """
    weight = next(encoder.model.parameters())
    sizes = [max(2, int(length * share)) for share in (1.0, *_SHARES)]
    ids, pad = _tokens(encoder.model, (len(sizes), length)), int(encoder.model.config.pad_token_id or 0)
    mask = (torch.arange(length)[None] < torch.tensor(sizes)[:, None]).long()
    ids, mask = ids.where(mask > 0, pad).to(weight.device), mask.to(weight.device)
    training, close = encoder.training, tolerance(weight.dtype)
    encoder.eval()
    with torch.no_grad():
        together = encoder.encode(ids, mask)
        alone = torch.cat([encoder.encode(row[None, :size], mask[:1, :size]) for row, size in zip(ids, sizes, strict=True)])
    encoder.train(training)
    difference = float(torch.nan_to_num((together - alone).norm(dim=1).max(), nan=float("inf")))
    if difference > close:
        raise ModelError(
            f"{type(encoder.model).__name__} gives a text another vector in a padded batch than alone: they differ by "
            f"{difference:.2g}, {close:.2g} is allowed.",
            _named(encoder.model),
            "Its forward does not keep padding out: report the architecture, or take another model.",
        )
    return ForwardCheck(path=ForwardPath(kernel=None, head="whole"), difference=difference, tolerance=close)


def _difference(module: Checkable, way: ForwardPath, batch: TargetBatch, expected: torch.Tensor) -> float:
    """Between the way's log-probabilities and those of the logits expected, at the worst place, as a part of their spread.

    Tokens that cannot be predicted are left out: rows without a token have logits near minus infinity, which would hide all
    others. The row of one document comes a second time by itself: it has other masks then.
    """
    module.use_path(way)
    count = int((batch.places < batch.input_ids.shape[1]).sum())
    rows = {name: getattr(batch, name)[:1] for name in ("input_ids", "segments", "positions")}
    asked = {name: getattr(batch, name)[:count] for name in ("places", "labels", "streams")}
    found = torch.cat([module.logits(batch), module.logits(replace(batch, is_packed=False, **rows, **asked))]).float()
    found, expected = (part.log_softmax(dim=1) for part in (found, torch.cat([expected, expected[:count]])))
    possible = expected > _IMPOSSIBLE
    apart = ((found - expected).square() * possible).sum(dim=1) / possible.sum(dim=1)
    spread = torch.stack([row[kept].var(correction=0) for row, kept in zip(expected, possible, strict=True)]).mean()
    return float(torch.nan_to_num((apart.max() / spread).sqrt(), nan=float("inf")))


def logits_per_document(module: Checkable, batch: TargetBatch, head: Head) -> Iterator[torch.Tensor]:
    """The logits [n, V] at the batch's places in each document, by the model's own forward of that document alone.

    Args:
        head: if not `whole`, logits of other places are never made: of a long row and a large vocabulary they take gigabytes.
    """
    length = batch.input_ids.shape[1]
    row, column = batch.places // length, batch.places % length
    cache = {"use_cache": False} if module.causal else {}
    for number, document in sorted({(int(r), int(batch.segments[r, c])) for r, c in zip(row, column, strict=True)}):
        tokens = torch.nonzero(batch.segments[number] == document)[:, 0]
        asked = column[(row == number) & (batch.segments[row, column] == document)] - tokens[0]
        with module.tap.gathering(asked, "whole" if head == "whole" else "gathered"):
            logits = module.model(input_ids=batch.input_ids[number, tokens][None], **cache).logits[0]
        yield (logits[asked] if head == "whole" else logits).float()


def check_batch(module: Checkable, length: int) -> TargetBatch:
    """One document in the first row; several and padding in the second. Places are in order of rows and documents."""
    sizes = [length], [max(2, int(length * share)) for share in _SHARES]
    segments = torch.full((2, length), -1)
    positions, places = torch.zeros(2, length, dtype=torch.long), []
    for row, documents in enumerate(sizes):
        start = 0
        for number, size in enumerate(documents):
            segments[row, start : start + size] = number
            positions[row, start : start + size] = torch.arange(size)
            places.append(row * length + start + torch.linspace(0, size - 1, min(size, _PLACES)).long())
            start += size
    asked = torch.cat(places)
    return TargetBatch(
        input_ids=_masked(module, _tokens(module.model, (2, length))),
        segments=segments,
        positions=positions,
        places=asked,
        labels=torch.zeros_like(asked),
        streams=torch.zeros_like(asked),
        is_packed=True,
        tokens=int((segments >= 0).sum()),
        attention_pairs=0,
    )


def _masked(module: Checkable, ids: torch.Tensor) -> torch.Tensor:
    """Mask tokens on some places, unevenly, where the model's settings name one: ESM scales by their share of a row."""
    mask = getattr(module.model.config, "mask_token_id", None)
    if mask is not None and int(mask) < module.model.config.vocab_size and not module.causal:
        ids[:, 1::3] = int(mask)
        ids[1, : ids.shape[1] // 3] = ids[0, 0]
    return ids


def _tokens(model: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """Random ids, none of them special: a model may look at its padding id by itself."""
    settings = model.config.get_text_config()
    special = {value for name, value in vars(settings).items() if name.endswith("_token_id") and isinstance(value, int)}
    ordinary = torch.tensor([number for number in range(settings.vocab_size) if number not in special])
    return ordinary[torch.randint(len(ordinary), shape, generator=torch.Generator().manual_seed(_SEED))]


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Without dropout, without gradients, and with the way of before if the check fails."""
    before, training = module.path, module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.use_path(before)
        module.train(training)
