"""The keys of the configuration: type, default and documentation of each, and advice for unknown keys.

Everything comes from the dataclasses; a key's documentation is the string below its field.
"""

import ast
import difflib
import inspect
import itertools
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from data_pipeline.errors import ConfigError

NAMES_ELSEWHERE = {
    "lr": "learning_rate", "max_steps": "steps", "num_train_epochs": "steps",
    "per_device_train_batch_size": "micro_batch", "gradient_accumulation_steps": "batch_size",
    "global_batch_size": "batch_size", "max_grad_norm": "clip", "gradient_clipping": "clip", "bf16": "precision",
    "fp16": "precision", "dtype": "precision", "gradient_checkpointing": "activation_checkpointing", "adam_epsilon": "eps",
    "lr_scheduler_type": "schedule", "warmup_ratio": "warmup_steps", "save_steps": "checkpoint_steps",
    "eval_steps": "evaluate_steps", "report_to": "track", "max_seq_length": "length", "block_size": "length",
    "torch_compile": "compile", "lora_r": "lora_rank", "mlm_probability": "probability", "model_name_or_path": "source_model",
}  # fmt: skip
"""Names of our keys in transformers' Trainer, peft and others, where they are spelt differently."""
_FOLDER_NAME = re.compile(r"[\w+-][\w.+-]*", re.ASCII)
_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A setting such as `pretrain.train.steps`. Names of settings in list items hold []."""

    name: str
    type: Any
    default: Any
    """`dataclasses.MISSING` if there is none."""
    doc: str


def keys(section: Any, prefix: str = "") -> Iterator[Key]:
    """The keys of a dataclass, or of an instance with the defaults, in the order of the fields, with inner sections."""
    kind = section if isinstance(section, type) else type(section)
    hints, docs = typing.get_type_hints(kind), _docs(kind)
    for entry in fields(kind):
        name, hint = prefix + entry.name, hints[entry.name]
        default = entry.default if isinstance(section, type) else getattr(section, entry.name)
        if isinstance(section, type) and entry.default_factory is not MISSING:
            default = entry.default_factory()
        if is_dataclass(hint):
            yield from keys(default, f"{name}.")
            continue
        yield Key(name=name, type=hint, default=MISSING if default == "???" else default, doc=docs.get(entry.name, ""))
        if (inner := item_type(hint)) is not None:
            yield from keys(inner, f"{name}[].")


def item_type(hint: Any) -> type | None:
    """The dataclass of a list's items, if it has one."""
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    return inner if is_dataclass(inner) and isinstance(inner, type) else None


def check_folder_name(name: str, where: str) -> None:
    """Checks that a name that the user gives can be (a part of) the name of a folder, also on object stores.

    Raises:
        ConfigError: it cannot.
    """
    if not _FOLDER_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not the name of a folder.", where, "Use letters, digits, _, ., + and -.")


def type_name(hint: Any) -> str:
    """A type in words, e.g. `integer or null`."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(map(str, inside[:-1])) + f" or {inside[-1]}" if len(inside) > 1 else str(inside[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if one is types.NoneType else type_name(one) for one in inside)
    if origin is tuple:
        return f"list of {type_name(inside[0])}"
    if origin is dict and inside[1] is not Any:
        return f"map of {type_name(inside[0])} to {type_name(inside[1])}"
    return _NAMES.get(hint, "section")


def yaml_value(value: Any) -> str:
    """A value as YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(yaml_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {yaml_value(one)}' for key, one in value.items())}}}"
    return str(value) if value != "" else "''"


def values(
    given: Any, section: type, where: str = "", prefix: str = "", root: type | None = None
) -> Iterator[tuple[str, Any, Any]]:
    """The name, type and value of each given key of `section`, with inner sections and lists of sections.

    Args:
        given: the parsed YAML.
        where: its file, for errors.
        prefix: the name of the section within `root`, the whole configuration.

    Raises:
        ConfigError: a key that does not exist (names the nearest), or a value in place of a section.
    """
    if not isinstance(given, Mapping):
        if isinstance(given, str) and "${" in given:
            return
        raise ConfigError(
            f"expected a section, got {yaml_value(given)}.", (where + prefix).rstrip(". :"), f"Its keys: {_own(section)}."
        )
    hints, root = typing.get_type_hints(section), root or section
    for name, value in given.items():
        full = f"{prefix}{name}"
        if name not in hints:
            raise ConfigError("there is no such key.", where + full, advice(full, root))
        if is_dataclass(hints[name]):
            yield from values(value, hints[name], where, f"{full}.", root)
        elif (inner := item_type(hints[name])) is not None and isinstance(value, list):
            for place, one in enumerate(value):
                yield from values(one, inner, where, f"{full}[{place}].", root)
                _check_required(one, inner, f"{where}{full}[{place}]")
        else:
            yield full, hints[name], value


def advice(name: str, root: type) -> str:
    """The key of `root` that `name` probably means: the one whose last part is most similar, preferably of the same section."""
    section, _, last = re.sub(r"\[\d+\]", "[]", name).rpartition(".")
    known = [key.name.split(".") for key in keys(root)]
    every = dict.fromkeys(".".join(parts[:depth]) for parts in known for depth in range(1, len(parts) + 1))
    ends = {key: key.rpartition(".")[2] for key in every}
    near = difflib.get_close_matches(NAMES_ELSEWHERE.get(last, last), ends.values(), n=1)
    same = [key for key, end in ends.items() if end in near]
    here = [key for key in same if key.rpartition(".")[0] == section]
    here = here or [key for key in same if key.startswith(f"{section}.")]
    return f"Did you mean {' or '.join((here or same)[:3])}?" if same else "`scion config` lists every key."


def _check_required(given: Mapping[str, Any], section: type, where: str) -> None:
    for entry in fields(section):
        if entry.default is MISSING and entry.default_factory is MISSING and entry.name not in given:
            raise ConfigError(f"{entry.name} must be given.", where)


def _own(section: type) -> str:
    return ", ".join(entry.name for entry in fields(section))


def _docs(section: type) -> dict[str, str]:
    """The literal below each field, also of base classes."""
    found: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        if is_dataclass(kind):
            found |= _in_module(kind.__module__).get(kind.__name__, {})
    return found


@cache
def _in_module(module: str) -> dict[str, dict[str, str]]:
    """Class to field to documentation."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: _below(node.body) for node in tree.body if isinstance(node, ast.ClassDef)}


def _below(body: list[ast.stmt]) -> dict[str, str]:
    found = {}
    for entry, behind in itertools.pairwise(body):
        match entry, behind:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                found[name] = " ".join(doc.split())
    return found
