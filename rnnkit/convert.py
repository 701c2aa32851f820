"""Replace the recurrent modules inside a model: torch.nn's by rnnkit's, or the reverse."""

import copy
import weakref
from collections.abc import Callable
from typing import Literal, TypeAlias

from torch import jit, nn
from torch.nn.utils import parametrize

from . import cells, layers

Subclasses = Literal["refuse", "keep", "convert"]
Pairs: TypeAlias = list[tuple[type[nn.Module], type[nn.Module]]]

PAIRS: Pairs = [
    (nn.RNN, layers.RNN),
    (nn.LSTM, layers.LSTM),
    (nn.GRU, layers.GRU),
    (nn.RNNCell, cells.RNNCell),
    (nn.LSTMCell, cells.LSTMCell),
    (nn.GRUCell, cells.GRUCell),
]
#: What torch.nn keeps beside the parameters, to find them again; rnnkit asks the module itself.
CACHES = ("_flat_weights", "_flat_weights_names", "_flat_weight_refs")
REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def convert(model: nn.Module, inplace: bool = True, subclasses: Subclasses = "refuse") -> nn.Module:
    """Replace every torch.nn recurrent module in `model`, at any depth, by rnnkit's.

    inplace     True: the new modules hold the same parameters as the old, so an optimizer of theirs stays good.
                False: a deep copy of the model is converted, parameters copied, and `model` is left alone.
    subclasses  what becomes of modules whose class derives from a torch.nn one: "refuse" them, "keep" them as they
                are, or "convert" them to the plain rnnkit class, which drops what the subclass overrides. Weights
                under `nn.utils.parametrize` make such a class too, but one that can't be dropped.

    Hooks, training mode, devices, dtypes and attributes go over. Returns the model; where `model` is itself a recurrent
    module, that is a new module. Raises TypeError that names each module it can't convert, and then changes nothing.
    """
    return _replace(model, PAIRS, _from_native, inplace, subclasses)


def to_native(model: nn.Module, inplace: bool = True, subclasses: Subclasses = "refuse") -> nn.Module:
    """Replace every rnnkit module in `model` by torch.nn's: `convert` the other way, with the same arguments."""
    return _replace(model, [(kit, native) for native, kit in PAIRS], _to_native, inplace, subclasses)


def _replace(
    model: nn.Module,
    pairs: Pairs,
    build: Callable[[nn.Module, type[nn.Module]], nn.Module],
    inplace: bool,
    subclasses: Subclasses,
) -> nn.Module:
    if subclasses not in ("refuse", "keep", "convert"):
        raise ValueError(f"subclasses should be 'refuse', 'keep' or 'convert', got: {subclasses!r}")
    bases = tuple({old.__base__ for old, _ in pairs if old.__base__})
    targets: dict[str, type[nn.Module]] = {}
    refused: list[str] = []
    for name, module in model.named_modules():
        any_class = subclasses == "convert" and not parametrize.is_parametrized(module)
        for old, new in pairs:
            if type(module) is old or (any_class and isinstance(module, old)):
                targets[name] = new
        if name not in targets and (_scripted(module, pairs) or (subclasses != "keep" and isinstance(module, bases))):
            refused.append(f"{name or 'the model itself'} ({type(module).__name__})")
    if refused:
        raise TypeError(f"can't convert {', '.join(refused)}: not exactly a class of torch.nn or rnnkit")

    if not inplace:
        model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    built = {modules[name]: build(modules[name], kind) for name, kind in targets.items()}
    for parent in [*(module for module in modules.values() if module not in built), *built.values()]:
        for name, child in parent._modules.items():
            if child in built:
                parent._modules[name] = built[child]
    return built.get(model, model)


def _scripted(module: nn.Module, pairs: Pairs) -> bool:
    names = {old.__name__ for old, _ in pairs}
    return isinstance(module, jit.ScriptModule) and getattr(module, "original_name", "") in names


def _from_native(old: nn.Module, kind: type[nn.Module]) -> nn.Module:
    new: nn.Module = kind.__new__(kind)
    # The two modules share parameters, not the dict of them. Hooks' dicts they share: that is where a handle looks.
    for key, value in vars(old).items():
        if key not in CACHES:
            vars(new)[key] = copy.copy(value) if key in REGISTRIES else value
    for hook in new._load_state_dict_pre_hooks.values():
        if getattr(hook, "with_module", False):  # these hold their module, weakly
            vars(hook)["module"] = weakref.ref(new)
    return new


def _to_native(old: nn.Module, kind: type[nn.Module]) -> nn.Module:
    new = _from_native(old, kind)
    if isinstance(old, layers.RNNBase) and isinstance(new, nn.RNNBase):
        vars(new)["_flat_weights_names"] = old._flat_weights_names
        new._init_flat_weights()
    return new
