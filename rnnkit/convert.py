"""Replace the recurrent modules inside a model: torch.nn's by rnnkit's, or the reverse."""

import copy
import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from torch import jit, nn
from torch.nn.modules.module import _WrappedHook
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
#: What is of the old module alone: what torch.nn keeps to find the parameters again, and what `compile()` made.
DROPPED = ("_flat_weights", "_flat_weights_names", "_flat_weight_refs", "_compiled_call_impl")
REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def convert(model: nn.Module, inplace: bool = True, subclasses: Subclasses = "refuse") -> nn.Module:
    """Replace every torch.nn recurrent module in `model`, at any depth, by rnnkit's.

    model       a module, at best an instance of `torch.nn.RNN`, `LSTM`, `GRU`, `RNNCell`, `LSTMCell` or `GRUCell`, or
                one that has such modules in it. One that occurs at several places is replaced by one
    inplace     True (default): the new modules hold the same parameters as the old, so an optimizer of theirs stays
                good; the old ones are not meant to be used again. False: a deep copy of the model is converted,
                parameters copied, and `model` is left alone
    subclasses  what becomes of modules whose class derives from a torch.nn one: "refuse" them (default), "keep" them
                as they are, or "convert" them to the plain rnnkit class, which drops what the subclass overrides.
                Weights under `nn.utils.parametrize` make such a class too, but one that can't be dropped

    Hooks, training mode, devices, dtypes and attributes go over, and the handle of a hook still removes it. Returns the
    model; where `model` is itself a recurrent module, that is a new module.

    What is bound to an old module is bound to the new one: bound methods, `functools.partial`, weak references and the
    module itself, as attribute or hook of any module in the model, or in a tuple or dictionary that is an attribute.
    A method of the old class becomes the new class's of that name. Nothing else is looked into: lists, closures and
    objects of other classes go on with the old module, which shares its parameters only with `inplace`. But a recurrent
    module's own `forward` (as a wrapper sets it on the instance) is refused if it can't follow. What `layer.compile()`
    made is dropped, as pickling does: compile again. A model that `torch.compile` wraps stays wrapped.

    `isinstance(module, nn.LSTM)` or `nn.RNNBase` in other people's code never matches rnnkit's classes: code that
    initialises or loads weights by such a test passes them over in silence. So build the model, initialise it and load
    its weights with torch.nn first, and convert then.

    Raises TypeError that names each module it can't convert, and then changes nothing; TypeError where `model` is no
    module; ValueError for an unknown `subclasses`.
    """
    return _replace(model, PAIRS, inplace, subclasses)


def to_native(model: nn.Module, inplace: bool = True, subclasses: Subclasses = "refuse") -> nn.Module:
    """Replace every rnnkit module in `model` by torch.nn's: `convert` the other way, with the same arguments."""
    return _replace(model, [(kit, native) for native, kit in PAIRS], inplace, subclasses)


def _replace(model: nn.Module, pairs: Pairs, inplace: bool, subclasses: Subclasses) -> nn.Module:
    """Do what `convert` says, by `pairs` of an old class and a new one."""
    targets = _targets(model, pairs, subclasses)
    originals = dict(model.named_modules())
    if not inplace:
        model = copy.deepcopy(model)
    modules: dict[str, Any] = dict(model.named_modules())
    built = {name: share(modules[name], kind) for name, kind in targets.items()}
    # A deep copy's weak references are the original's, so these are known as well.
    new_of = {id(some[name]): new for name, new in built.items() for some in (originals, modules)}
    for name, module in modules.items():
        _rebind(built.get(name, module), new_of)
        # By its looks, for the class is dear to import. It binds what it wraps: bound again as after unpickling.
        if type(module).__name__ == "OptimizedModule" and module._orig_mod in built.values():
            module._initialize()
    return built.get("", model)


def _targets(model: Any, pairs: Pairs, subclasses: Subclasses) -> dict[str, type[nn.Module]]:
    """Find the modules to replace: by name, the class to replace each by. Raise as `convert` does."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model should be a torch.nn.Module, got: {got}")
    if subclasses not in ("refuse", "keep", "convert"):
        raise ValueError(f"subclasses should be 'refuse', 'keep' or 'convert', got: {subclasses!r}")
    names = {old.__name__ for old, _ in pairs}
    bases = tuple({old.__base__ for old, _ in pairs if old.__base__})
    targets: dict[str, type[nn.Module]] = {}
    refused: list[str] = []
    for name, module in model.named_modules():
        any_class = subclasses == "convert" and not parametrize.is_parametrized(module)
        for old, new in pairs:
            if type(module) is old or (any_class and isinstance(module, old)):
                targets[name] = new
        called = f"{name or 'the model itself'} ({type(module).__name__})"
        if name in targets and "forward" in vars(module) and not _can_follow(vars(module)["forward"], module):
            refused.append(f"{called}: its own forward can't be bound to the new module; set it after converting")
        scripted = isinstance(module, jit.ScriptModule) and module.original_name in names
        if name not in targets and (scripted or (subclasses != "keep" and isinstance(module, bases))):
            refused.append(f"{called}: not exactly a class of torch.nn or rnnkit")
    if refused:
        raise TypeError(f"can't convert {', '.join(refused)}")
    return targets


def _can_follow(forward: Any, module: nn.Module) -> bool:
    """Tell whether `forward` is bound to `module`, and by nothing but what `_rebound` can bind again."""
    new_of = {id(module): nn.Module()}
    function = getattr(forward, "__func__", getattr(forward, "func", forward))
    held = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return _rebound(forward, new_of) is not forward and all(_rebound(part, new_of) is part for part in held)


def share(old: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Make a module of the other library with the attributes and parameters of `old`, which is left as it is."""
    new: nn.Module = kind.__new__(kind)
    # The two modules share parameters, not the dict of them. Hooks' dicts they share: that is where a handle looks.
    for key, value in vars(old).items():
        if key not in DROPPED:
            vars(new)[key] = copy.copy(value) if key in REGISTRIES else value
    if isinstance(new, nn.RNNBase):
        new._flat_weights_names = [name for names in new._all_weights for name in names]
        new._init_flat_weights()
    return new


def _rebind(module: nn.Module, new_of: Mapping[int, nn.Module]) -> None:
    """Bind the attributes of `module` to the new modules, and what is in its dictionaries: children, hooks."""
    holders = [vars(module), *(value for value in vars(module).values() if type(value) in (dict, OrderedDict))]
    holders += [vars(hook) for holder in holders for hook in holder.values() if type(hook) is _WrappedHook]
    for holder in holders:
        for key, value in holder.items():
            holder[key] = _rebound(value, new_of)


def _rebound(value: Any, new_of: Mapping[int, nn.Module]) -> Any:
    """Return `value` bound to the new modules, which `new_of` has by the old ones' ids; itself if bound to none."""
    if id(value) in new_of:
        return new_of[id(value)]
    if type(value) in (weakref.ref, weakref.WeakMethod):
        target = value()
        new = _rebound(target, new_of)
        return value if new is target else type(value)(new)
    if type(value) is types.MethodType and id(value.__self__) in new_of:
        new, function = new_of[id(value.__self__)], value.__func__
        name = getattr(function, "__name__", "")
        if getattr(type(value.__self__), name, None) is function:
            function = getattr(type(new), name, function)
        return types.MethodType(function, new)
    if type(value) is tuple:
        parts = tuple(_rebound(part, new_of) for part in value)
        return parts if any(new is not part for new, part in zip(parts, value, strict=True)) else value
    if type(value) is functools.partial:
        state = (value.func, value.args, tuple(value.keywords.items()), tuple(vars(value).items()))
        moved = _rebound(state, new_of)
        if moved is not state:
            function, arguments, keywords, attributes = moved
            value = functools.partial(function, *arguments, **dict(keywords))
            vars(value).update(attributes)  # functools.update_wrapper puts the wrapped method there
    return value
