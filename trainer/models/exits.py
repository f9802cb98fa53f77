"""Early exits: a model's first layers as a model of their own, and the states behind some layers in one forward pass.

A state behind an inner layer passes the model's final normalisation, if it has one, before it is pooled: so a model of k layers
gives the same vector as the exit behind layer k.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from data_pipeline.errors import ModelError


def layer_list(model: PreTrainedModel) -> str:
    """The name of the list of layers, such as `encoder.layer`.

    Raises:
        ModelError: the model has no such list: ALBERT repeats one layer.
    """
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        is_inner = any(part.isdigit() for part in name.split("."))
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and not is_inner:
            return name
    raise ModelError("it has no list of layers to leave early.", type(model).__name__, "Leave embed.nested.exits out.")


def first_layers(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """The model without the layers behind the first `count`; it shares the weights, and `model` stays as it is."""
    shallow = _copy(model)
    shallow.config = copy.deepcopy(model.config)
    shallow.config.get_text_config().num_hidden_layers = count
    *path, last = layer_list(model).split(".")
    parent: torch.nn.Module = shallow
    for name in path:
        parent._modules[name] = child = _copy(parent.get_submodule(name))
        parent = child
    layers: Any = parent.get_submodule(last)
    parent._modules[last] = layers[:count]
    return shallow


def _copy(module: Any) -> Any:
    """The module with a dictionary of submodules of its own."""
    shallow = copy.copy(module)
    shallow._modules = dict(module._modules)
    return shallow


def between_layers(model: PreTrainedModel, call: Callable[[], None]) -> None:
    """Calls a function before each layer but the first whenever the model runs; never where it has no list of layers."""
    try:
        layers: Any = model.get_submodule(layer_list(model))
    except ModelError:
        return
    for layer in layers[1:]:
        layer.register_forward_pre_hook(lambda module, inputs: call())


def check_exits(model: PreTrainedModel, behind: tuple[int, ...]) -> None:
    """Checks that the model has inner layers of these numbers; its weights are not read.

    Raises:
        ModelError: it has fewer, or no list of them.
    """
    layers: Any = model.get_submodule(layer_list(model))
    if wrong := [count for count in behind if not 0 < count < len(layers)]:
        raise ModelError(
            f"it has {len(layers)} layers, so that there is no exit behind layer {wrong[0]}.",
            type(model).__name__,
            "Change embed.nested.exits.",
        )


class Exits:
    """Records the states behind some layers of a model whenever it runs.

    Raises:
        ModelError: the model has fewer layers, no list of them, or a last step that is not known.
    """

    def __init__(self, model: PreTrainedModel, behind: tuple[int, ...]) -> None:
        check_exits(model, behind)
        layers: Any = model.get_submodule(layer_list(model))
        self._norm = final_norm(model)
        self._states: dict[int, torch.Tensor] = {}
        for count in behind:
            layers[count - 1].register_forward_hook(self._recorder(count))
        self.behind = behind

    def _recorder(self, count: int) -> Any:
        def record(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            self._states[count] = _state(output)

        return record

    def take(self) -> list[torch.Tensor]:
        """The normalised states of the last forward pass, in the order of `behind`."""
        states = [self._states.pop(count) for count in self.behind]
        return states if self._norm is None else [self._norm(state) for state in states]


def final_norm(model: PreTrainedModel) -> torch.nn.Module | None:
    """The module that normalises the states behind the last layer; None if there is none.

    It is found by trying: the output of the last layer, normalised, is the model's output.

    Raises:
        ModelError: the model does something else behind its last layer.
    """
    name = layer_list(model)
    recorded: list[torch.Tensor] = []
    layers: Any = model.get_submodule(name)
    hook = layers[-1].register_forward_hook(lambda module, inputs, output: recorded.append(_state(output)))
    was_training = model.training
    model.eval()
    ids = torch.arange(4, 8, device=model.device)[None]
    with torch.no_grad():
        final = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        hook.remove()
        candidates = [
            None,
            *(m for n, m in model.named_modules() if "norm" in type(m).__name__.lower() and not n.startswith(name)),
        ]
        for module in candidates:
            state = recorded[0] if module is None else _normalised(module, recorded[0])
            if state is not None and state.shape == final.shape and torch.allclose(state, final, atol=1e-6):
                model.train(was_training)
                return module
    raise ModelError(
        "Scion does not know what it does behind its last layer.", type(model).__name__, "Leave embed.nested.exits out."
    )


def _state(output: Any) -> torch.Tensor:
    """The hidden state in what a layer returns."""
    state: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return state


def _normalised(module: torch.nn.Module, state: torch.Tensor) -> torch.Tensor | None:
    """The module's output for the state; None if it normalises vectors of another width."""
    width = getattr(module, "weight", torch.empty(0)).shape
    return module(state) if width == state.shape[-1:] else None
