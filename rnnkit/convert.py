"""Replace the recurrent modules inside a model: torch.nn's by rnnkit's, or the reverse."""

import copy
from collections.abc import Callable
from typing import Any, Literal

from torch import jit, nn

from . import cells, layers

Subclasses = Literal["refuse", "keep", "convert"]

PAIRS: list[tuple[type[nn.Module], type[nn.Module]]] = [
    (nn.RNN, layers.RNN),
    (nn.LSTM, layers.LSTM),
    (nn.GRU, layers.GRU),
    (nn.RNNCell, cells.RNNCell),
    (nn.LSTMCell, cells.LSTMCell),
    (nn.GRUCell, cells.GRUCell),
]
#: What torch.nn keeps beside the parameters, to find them again; rnnkit asks the module itself.
CACHES = ("_flat_weights", "_flat_weights_names", "_flat_weight_refs")


def convert(model: nn.Module, inplace: bool = True, subclasses: Subclasses = "refuse") -> nn.Module:
    """Replace every torch.nn recurrent module in `model`, at any depth, by rnnkit's.

    inplace     True: the new modules hold the same parameters as the old, so an optimizer of theirs stays good.
                False: a deep copy of the model is converted, parameters copied, and `model` is left alone.
    subclasses  what becomes of modules whose class derives from a torch.nn one (weights under
                `nn.utils.parametrize` make such a class too): "refuse" them, "keep" them as they are, or "convert"
                them to the plain rnnkit class, which drops what the subclass overrides.

    Hooks, training mode, devices, dtypes and attributes go over. Returns the model; where `model` is itself a recurrent
    module, that is a new module. Raises TypeError that names each module it can't convert, and then changes nothing.
    """
    return _replace(model, PAIRS, _from_native, inplace, subclasses)


def to_native(model: nn.Module, inplace: bool = True, subclasses: Subclasses = "refuse") -> nn.Module:
    """Replace every rnnkit module in `model` by torch.nn's: `convert` the other way, with the same arguments."""
    return _replace(model, [(kit, native) for native, kit in PAIRS], _to_native, inplace, subclasses)


def _replace(
    model: nn.Module,
    pairs: list[tuple[type[nn.Module], type[nn.Module]]],
    build: Callable[[nn.Module, type[nn.Module]], nn.Module],
    inplace: bool,
    subclasses: Subclasses,
) -> nn.Module:
    if subclasses not in ("refuse", "keep", "convert"):
        raise ValueError(f"subclasses should be 'refuse', 'keep' or 'convert', got: {subclasses!r}")
    targets: dict[str, type[nn.Module]] = {}
    refused: list[str] = []
    for name, module in model.named_modules():
        for old, new in pairs:
            if type(module) is old or (subclasses == "convert" and isinstance(module, old)):
                targets[name] = new
            elif (subclasses == "refuse" and isinstance(module, old)) or _scripted(module, old):
                refused.append(f"{name or 'the model itself'} ({type(module).__name__})")
    if refused:
        raise TypeError(f"can't convert {', '.join(refused)}: not exactly a class of torch.nn or rnnkit")

    if not inplace:
        model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    built = {modules[name]: build(modules[name], kind) for name, kind in targets.items()}
    for module in modules.values():
        for name, child in module._modules.items():
            if child in built:
                module._modules[name] = built[child]
    return built.get(model, model)


def _scripted(module: nn.Module, kind: type[nn.Module]) -> bool:
    return isinstance(module, jit.ScriptModule) and getattr(module, "original_name", "") == kind.__name__


def _from_native(old: nn.Module, kind: type[nn.Module]) -> nn.Module:
    new: nn.Module = kind.__new__(kind)
    # Dicts of parameters and hooks are copied one level deep: the two modules share what is in them, not the dicts.
    new.__dict__.update({key: _shallow(value) for key, value in vars(old).items() if key not in CACHES})
    return new


def _to_native(old: nn.Module, kind: type[nn.Module]) -> nn.Module:
    new = _from_native(old, kind)
    if isinstance(old, layers.RNNBase) and isinstance(new, nn.RNNBase):
        vars(new)["_flat_weights_names"] = old._flat_weights_names
        new._init_flat_weights()
    return new


def _shallow(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, (dict, list, set)) else value
