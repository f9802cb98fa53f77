"""The table of transfer methods. To add a paper: add its module, an entry here, and a test of its own claim."""

from dataclasses import dataclass
from typing import Any, Literal

from trainer.transfer.methods import (
    aligned,
    clp,
    clp_plus,
    focus,
    fvt,
    mean,
    ofa,
    omp,
    ramen,
    random,
    resize,
    script_moments,
    tokenadapt,
    trans_tokenizers,
    wechsel,
)
from trainer.transfer.problem import Method


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the table: the config, the function and the paper."""

    config: type[Any]
    place: Method
    paper: str
    is_from_scratch: bool = False
    """Whether the rest of the model gets random weights as well."""
    learns_from: Literal["text", "pairs", "donor"] = "text"
    """What the method needs besides the source model: only text, text pairs, or a model of the new language."""


METHODS: dict[str, Entry] = {
    "scratch": Entry(
        random.RandomConfig, random.place, "baseline: the architecture alone, every weight drawn anew", is_from_scratch=True
    ),
    "resize": Entry(resize.ResizeConfig, resize.place, "baseline: resize_token_embeddings, old rows by id"),
    "random": Entry(random.RandomConfig, random.place, "baseline: normal with the moments of the old rows"),
    "mean": Entry(mean.MeanConfig, mean.place, "baseline: the mean of the old rows"),
    "script_moments": Entry(
        script_moments.ScriptMomentsConfig, script_moments.place, "Downey et al., MRL 2023 (arXiv:2309.04679)"
    ),
    "fvt": Entry(fvt.FvtConfig, fvt.place, "Gee et al., EMNLP 2022 (Fast Vocabulary Transfer)"),
    "wechsel": Entry(
        wechsel.WechselConfig, wechsel.place, "Minixhofer et al., NAACL 2022 (arXiv:2112.06598)", learns_from="pairs"
    ),
    "ofa": Entry(ofa.OfaConfig, ofa.place, "Liu et al., Findings of NAACL 2024 (arXiv:2311.08849)", learns_from="pairs"),
    "focus": Entry(focus.FocusConfig, focus.place, "Dobler and de Melo, EMNLP 2023 (arXiv:2305.14481)"),
    "clp": Entry(clp.ClpConfig, clp.place, "Ostendorff and Rehm, 2023 (arXiv:2301.09626)", learns_from="donor"),
    "clp_plus": Entry(
        clp_plus.ClpPlusConfig,
        clp_plus.place,
        "Yamaguchi et al., Findings of EMNLP 2024 (arXiv:2402.10712)",
        learns_from="donor",
    ),
    "omp": Entry(omp.OmpConfig, omp.place, "Goddard and Fernandes Neto, 2025 (arXiv:2506.06607)", learns_from="donor"),
    "tokenadapt": Entry(
        tokenadapt.TokenadaptConfig, tokenadapt.place, "Sharthak et al., 2025 (arXiv:2505.09738)", learns_from="pairs"
    ),
    "ramen": Entry(ramen.RamenConfig, ramen.place, "Tran, 2020 (arXiv:2002.07306)", learns_from="pairs"),
    "trans_tokenizers": Entry(
        trans_tokenizers.TransTokenizersConfig,
        trans_tokenizers.place,
        "Remy et al., COLM 2024 (arXiv:2408.04303)",
        learns_from="pairs",
    ),
    "aligned": Entry(
        aligned.AlignedConfig, aligned.place, "after Remy et al., COLM 2024 (arXiv:2408.04303), by Dice", learns_from="pairs"
    ),
}


def methods() -> dict[str, str]:
    """Every method by its name, and where it was published."""
    return {name: entry.paper for name, entry in METHODS.items()}
