"""The table of initialisers. Adding a paper: its module here, one row, one test for its own claim."""

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
    """A row of the table: the settings, the function and where it was published."""

    config: type[Any]
    rows: Method
    paper: str
    fresh: bool = False
    """Whether the rest of the model is drawn anew as well."""
    learns_from: Literal["text", "pairs", "donor"] = "text"
    """What it needs besides the source model: no more than text, aligned pairs, or a model of the new language."""


METHODS: dict[str, Entry] = {
    "scratch": Entry(random.RandomConfig, random.rows, "baseline: the architecture alone, every weight drawn anew", fresh=True),
    "resize": Entry(resize.ResizeConfig, resize.rows, "baseline: resize_token_embeddings, old rows by id"),
    "random": Entry(random.RandomConfig, random.rows, "baseline: normal with the moments of the old rows"),
    "mean": Entry(mean.MeanConfig, mean.rows, "baseline: the mean of the old rows"),
    "script_moments": Entry(
        script_moments.ScriptMomentsConfig, script_moments.rows, "Downey et al., MRL 2023 (arXiv:2309.04679)"
    ),
    "fvt": Entry(fvt.FvtConfig, fvt.rows, "Gee et al., EMNLP 2022 (Fast Vocabulary Transfer)"),
    "wechsel": Entry(
        wechsel.WechselConfig, wechsel.rows, "Minixhofer et al., NAACL 2022 (arXiv:2112.06598)", learns_from="pairs"
    ),
    "ofa": Entry(ofa.OfaConfig, ofa.rows, "Liu et al., Findings of NAACL 2024 (arXiv:2311.08849)", learns_from="pairs"),
    "focus": Entry(focus.FocusConfig, focus.rows, "Dobler and de Melo, EMNLP 2023 (arXiv:2305.14481)"),
    "clp": Entry(clp.ClpConfig, clp.rows, "Ostendorff and Rehm, 2023 (arXiv:2301.09626)", learns_from="donor"),
    "clp_plus": Entry(
        clp_plus.ClpPlusConfig,
        clp_plus.rows,
        "Yamaguchi et al., Findings of EMNLP 2024 (arXiv:2402.10712)",
        learns_from="donor",
    ),
    "omp": Entry(omp.OmpConfig, omp.rows, "Goddard and Fernandes Neto, 2025 (arXiv:2506.06607)", learns_from="donor"),
    "tokenadapt": Entry(
        tokenadapt.TokenadaptConfig, tokenadapt.rows, "Sharthak et al., 2025 (arXiv:2505.09738)", learns_from="pairs"
    ),
    "ramen": Entry(ramen.RamenConfig, ramen.rows, "Tran, 2020 (arXiv:2002.07306)", learns_from="pairs"),
    "trans_tokenizers": Entry(
        trans_tokenizers.TransTokenizersConfig,
        trans_tokenizers.rows,
        "Remy et al., COLM 2024 (arXiv:2408.04303)",
        learns_from="pairs",
    ),
    "aligned": Entry(
        aligned.AlignedConfig, aligned.rows, "after Remy et al., COLM 2024 (arXiv:2408.04303), by Dice", learns_from="pairs"
    ),
}
