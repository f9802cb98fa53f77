"""How token vectors become text vectors, and the files of an embedder's folder that say so.

The folder is one of sentence-transformers, in the layout that all versions since 2 read, with an `embed.json` of our own.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from data_pipeline.errors import ConfigError, ModelError, reason
from data_pipeline.pairs.text_form import SIDES, TEXT, TextForm, check_template, template_text
from trainer.models.pooling import LATENT_ATTENTION, POOLINGS, pooling_name

_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
}
"""Each pooling's flag in the `config.json` of sentence-transformers' Pooling."""
_ALWAYS = ("cls", "mean", "max", "lasttoken")
"""Poolings whose flags are always written; early versions do not know the others."""
_REFUSAL = "scion.load_it_with_scion_Embedder"
"""In place of the package of modules, where texts have a template or the pooling has weights: sentence-transformers knows
neither, refuses the folder, and names this."""
_MODULES = ("Transformer", "Pooling", "Normalize", "Dropout")
"""Modules of sentence-transformers that `Embedder` computes; dropout does nothing outside of a training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderSpec:
    """How token vectors become text vectors; the content of `embed.json`."""

    pooling: str = "mean"
    """As `embed.pooling`."""
    normalize: bool = True
    max_length: int = 128
    """Tokens, including special tokens; longer texts are truncated."""
    dimensions: tuple[int, ...] = ()
    """Widths that a request may ask for, including the full width; empty means the full width only."""
    layers: tuple[int, ...] = ()
    """Numbers of layers behind which a request may take the vector, beside all of them."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Texts to put in front, by name: `query` for what searches, `document` for what is found, and others."""
    default_prompt_name: str | None = None
    """The prompt of a text for which none is asked."""
    include_prompt: bool = True
    """Whether the tokens of a prompt are pooled."""
    template: str = TEXT
    """What is written around a text: echo, prompteol, or a text with {text} once or twice."""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "EmbedderSpec":
        """A spec from the object that it is written as; earlier versions of Scion wrote fewer fields."""
        return cls(**content | {name: tuple(content.get(name, ())) for name in ("dimensions", "layers")})

    def __post_init__(self) -> None:
        object.__setattr__(self, "pooling", pooling_name(self.pooling))
        check_template(self.template, self.pooling)
        object.__setattr__(self, "template", template_text(self.template))
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise ConfigError(f"there is no prompt {self.default_prompt_name!r}.", "default_prompt_name", self._known_prompts())

    def form(self, prompt_name: str | None = None, prompt: str | None = None) -> TextForm:
        """How a text is written.

        Args:
            prompt_name: a key of `prompts`. `query` and `document` may be missing: every embedder can be asked for both sides.
            prompt: in place of a named one.

        Raises:
            ConfigError: there is no prompt of this name.
        """
        if prompt is None:
            wanted = next((name for name in SIDES.get(prompt_name, (prompt_name,)) if name in self.prompts), None)
            if wanted is None and prompt_name is not None and prompt_name not in SIDES:
                raise ConfigError(f"this embedder has no prompt {prompt_name!r}.", "prompt_name", self._known_prompts())
            name = self.default_prompt_name if wanted is None else wanted
            prompt = "" if name is None else self.prompts[name]
        return TextForm(prompt=prompt, template=self.template, pools_prompt=self.include_prompt)

    def _known_prompts(self) -> str:
        return f"There is {', '.join(self.prompts)}." if self.prompts else "It has no prompts."


def read_spec(folder: str, longest: int) -> EmbedderSpec:
    """Reads `embed.json`, else the files of sentence-transformers; a plain model folder has mean pooling.

    Args:
        longest: the tokens for which the model has positions.

    Raises:
        ModelError: the folder computes its vectors in a way that Scion does not know.
    """
    content = _read(folder, "embed.json")
    if content is not None:
        try:
            return EmbedderSpec.from_json(content)
        except ConfigError as error:
            raise ModelError(error.what, folder, error.fix) from error
        except TypeError as error:  # it is no object, or has fields that this version does not know
            fix = "Install the version of Scion that wrote it, or save it again."
            raise ModelError(f"embed.json cannot be read ({reason(error)}).", f"model {folder}", fix) from error
    pooling = _read(folder, os.path.join(_pooling_path(folder), "config.json")) or {}
    return EmbedderSpec(
        pooling=_pooling(pooling, folder),
        max_length=_max_length(folder, longest),
        include_prompt=bool(pooling.get("include_prompt", True)),
        **_prompts(_read(folder, "config_sentence_transformers.json") or {}),
    )


def says_pooling(folder: str) -> bool:
    """Whether a folder says how the vectors of its tokens become that of a text."""
    return any(
        os.path.exists(os.path.join(folder, name))
        for name in ("embed.json", os.path.join(_pooling_path(folder), "config.json"))
    )


def is_readable(spec: EmbedderSpec) -> bool:
    """Whether sentence-transformers computes the same vectors."""
    return spec.template == TEXT and spec.pooling != LATENT_ATTENTION


def write_spec(spec: EmbedderSpec, folder: str, width: int) -> None:
    """Writes the files beside model and tokenizer.

    Args:
        width: of the model's output vectors.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * spec.normalize
    home = "sentence_transformers.models" if is_readable(spec) else _REFUSAL
    entries = [{"idx": i, "name": str(i), "path": path, "type": f"{home}.{kind}"} for i, (path, kind) in enumerate(modules)]
    flags: dict[str, bool] = {flag: mode == spec.pooling for mode, flag in _FLAGS.items() if mode in (*_ALWAYS, spec.pooling)}
    if not spec.include_prompt:
        flags["include_prompt"] = False
    for path, _ in modules[1:]:
        os.makedirs(os.path.join(folder, path), exist_ok=True)
    _write(folder, "modules.json", entries)
    _write(folder, "sentence_bert_config.json", {"max_seq_length": spec.max_length, "do_lower_case": False})
    _write(folder, "config_sentence_transformers.json", _prompt_settings(spec))
    _write(folder, "1_Pooling/config.json", {"word_embedding_dimension": width} | flags)
    _write(folder, "embed.json", asdict(spec))


def _prompts(content: dict[str, Any]) -> dict[str, Any]:
    """The prompts of a `config_sentence_transformers.json`, without the empty ones, which it writes for two names."""
    prompts, default = dict(content.get("prompts") or {}), content.get("default_prompt_name")
    return {
        "prompts": {name: prompt for name, prompt in prompts.items() if prompt or name == default},
        "default_prompt_name": default,
    }


def _prompt_settings(spec: EmbedderSpec) -> dict[str, Any]:
    """The content of a `config_sentence_transformers.json`."""
    return {"similarity_fn_name": "cosine", "prompts": spec.prompts, "default_prompt_name": spec.default_prompt_name}


def _max_length(folder: str, longest: int) -> int:
    """Where a text is cut: sentence-transformers writes it beside the model, since version 6 with the tokenizer."""
    given = (_read(folder, "sentence_bert_config.json") or {}).get("max_seq_length")
    if given is not None:
        return int(given)
    of_tokenizer = (_read(folder, "tokenizer_config.json") or {}).get("model_max_length") or longest
    is_plain = _read(folder, "modules.json") is None
    return int(min(longest, of_tokenizer, 512 if is_plain else longest))


def _pooling_path(folder: str) -> str:
    """The folder of the module that pools.

    Raises:
        ModelError: there are modules of another kind, such as Dense.
    """
    modules: Any = _read(folder, "modules.json") or []
    kinds = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
    if unknown := [kind for kind in kinds if kind not in _MODULES]:
        raise ModelError(
            f"it has a module {unknown[0]}, which Scion does not compute.",
            f"model {folder}",
            f"Take one of {', '.join(_MODULES[:3])} only.",
        )
    return kinds.get("Pooling", "1_Pooling")


def _pooling(content: dict[str, Any], folder: str) -> str:
    """The pooling that a `config.json` of sentence-transformers' Pooling names; mean if it names none.

    Raises:
        ModelError: it is not known, or there are several, which sentence-transformers concatenates.
    """
    named = content.get("pooling_mode")
    if named is None:
        suffixes = {flag: mode for mode, flag in _FLAGS.items()}
        named = [suffixes.get(key, key) for key, value in content.items() if key.startswith("pooling_mode_") and value is True]
    modes = [named] if isinstance(named, str) else list(named) or ["mean"]
    if len(modes) > 1:
        raise ModelError(
            f"it concatenates several poolings ({', '.join(modes)}).", f"model {folder}", "Take a model with one of them."
        )
    if modes[0] not in POOLINGS:
        raise ModelError(f"{modes[0]!r} is not a pooling.", f"model {folder}", f"Scion knows {', '.join(POOLINGS)}.")
    return str(modes[0])


def _read(folder: str, name: str) -> Any:
    """The content of a JSON file; None if there is none, ModelError if it is damaged."""
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ModelError(f"{name} is not JSON ({reason(error)}).", f"model {folder}", "Save the embedder again.") from error


def _write(folder: str, name: str, content: object) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
