"""Replace the recurrent modules inside a model: torch.nn's by rnnkit's, or the reverse."""

import copy
import functools
import os
import types
import weakref
from collections.abc import Iterator
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

    What is bound to an old module is bound to the new one instead, on the module itself and on all others in the model:
    bound methods (a `forward` patched with `types.MethodType`, a hook), `functools.partial`, weak references, the
    module in an attribute, a list, tuple, set or dictionary, hooks registered with their module. A method of the old
    class becomes the new class's of that name. What `layer.compile()` made is dropped, as pickling does: compile again.
    A model that `torch.compile` wraps stays wrapped. A function that holds an old module in its closure, its defaults
    or its attributes can't be given another, and is refused. Objects of other classes are not looked into.

    `isinstance(module, nn.LSTM)` or `nn.RNNBase` in other people's code never matches rnnkit's classes: code that
    initialises or loads weights by such a test passes them over in silence. So build the model, initialise it and load
    its weights with torch.nn first, and convert then.

    Raises TypeError that names each module it can't convert, or each attribute that can't follow, and then changes
    nothing; TypeError where `model` is no module; ValueError for an unknown `subclasses`.
    """
    _check_model("convert", model)
    return _replace(model, PAIRS, inplace, subclasses)


def to_native(model: nn.Module, inplace: bool = True, subclasses: Subclasses = "refuse") -> nn.Module:
    """Replace every rnnkit module in `model` by torch.nn's: `convert` the other way, with the same arguments."""
    _check_model("to_native", model)
    return _replace(model, [(kit, native) for native, kit in PAIRS], inplace, subclasses)


def _check_model(function: str, model: Any) -> None:
    """Raise TypeError for what is no module, and say what to do."""
    if isinstance(model, nn.Module):
        return
    got, remedy = type(model).__name__, ""
    if isinstance(model, type):
        got, remedy = f"the class {model.__name__}", "; make an instance of it first"
    elif isinstance(model, (str, os.PathLike)):
        remedy = "; load the model first"
    elif isinstance(model, (list, tuple, dict)):
        remedy = "; put the modules into an nn.ModuleList or nn.ModuleDict, or give one at a time"
    raise TypeError(f"{function}(): argument 'model' should be a torch.nn.Module, got: {got}{remedy}")


def _replace(model: nn.Module, pairs: Pairs, inplace: bool, subclasses: Subclasses) -> nn.Module:
    targets = _targets(model, pairs, subclasses)
    originals: dict[str, Any] = dict(model.named_modules())
    if not inplace:
        model = copy.deepcopy(model)
    modules: dict[str, Any] = dict(model.named_modules())
    built = {name: _build(modules[name], kind) for name, kind in targets.items()}
    # A deep copy's weak references and functions are the original's, so these are known as well.
    new_of = {id(some[name]): new for name, new in built.items() for some in (originals, modules)}
    follow = _Follow(new_of, {new: old for old, new in pairs})
    for name, module in modules.items():
        follow.attributes(name, built.get(name, module))
    follow.all()
    for module in built.values():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
    return new_of.get(id(model), model)


def _targets(model: nn.Module, pairs: Pairs, subclasses: Subclasses) -> dict[str, type[nn.Module]]:
    """By name, the modules to replace and the class to replace them by. Raises as `convert` does."""
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
    return targets


def _scripted(module: nn.Module, pairs: Pairs) -> bool:
    names = {old.__name__ for old, _ in pairs}
    return isinstance(module, jit.ScriptModule) and getattr(module, "original_name", "") in names


def _build(old: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A module of the other library with the attributes of `old`, which is left as it is."""
    new: nn.Module = kind.__new__(kind)
    # The two modules share parameters, not the dict of them. Hooks' dicts they share: that is where a handle looks.
    for key, value in vars(old).items():
        if key not in DROPPED:
            vars(new)[key] = copy.copy(value) if key in REGISTRIES else value
    if isinstance(new, nn.RNNBase):
        vars(new)["_flat_weights_names"] = [name for names in new._all_weights for name in names]
    return new


class _Follow:
    """Find what in a model is bound to modules that were replaced, then bind it to the new ones, all or nothing.

    new_of  the new modules by the id of the old
    old_of  the classes: from a new module's to the old one's
    """

    def __init__(self, new_of: dict[int, nn.Module], old_of: dict[type[nn.Module], type[nn.Module]]) -> None:
        self.new_of = new_of
        self.old_of = old_of
        self.seen: set[int] = set()  # of lists, dicts and functions, which may hold themselves
        self.edits: list[tuple[Any, Any, Any]] = []  # (list or dict, key, value to put there)
        self.compiled: list[Any] = []
        self.stuck: list[str] = []

    def attributes(self, name: str, module: nn.Module) -> None:
        """Look through all attributes of `module`, which is called `name` in the model."""
        rewrapped = _is_compiled(module) and id(module._modules["_orig_mod"]) in self.new_of
        if rewrapped:
            self.compiled.append(module)
        for key, value in vars(module).items():
            if rewrapped and key in ("forward", "_forward"):
                continue
            try:
                self.entry(vars(module), key, value)
            except _CannotFollowError:
                self.stuck.append(f"{key} of {name or 'the model itself'} ({type(module).__name__})")

    def all(self) -> None:
        """Bind to the new modules what was found; where something can't be, raise TypeError instead."""
        if self.stuck:
            raise TypeError(
                f"can't convert: {', '.join(self.stuck)} can't be bound to the new module: a function holds the old "
                "one, or the new class has no such method; remove it, convert, and set it again"
            )
        for holder, key, value in self.edits:
            holder[key] = value
        for module in self.compiled:
            module._initialize()  # torch.compile's wrapper binds what it wraps: bound again as after unpickling

    def entry(self, holder: Any, key: Any, value: Any) -> None:
        """Note what `holder[key]`, which is `value`, should be; look into lists and dicts, which stay the same ones."""
        if type(value) in weakref.ProxyTypes:
            return
        moved = self.moved(value)
        if moved is not value:
            self.edits.append((holder, key, moved))
        inner = vars(value) if isinstance(value, _WrappedHook) else value
        if isinstance(inner, (list, dict)) and id(inner) not in self.seen:
            self.seen.add(id(inner))
            for k, v in inner.items() if isinstance(inner, dict) else enumerate(inner):
                self.entry(inner, k, v)

    def moved(self, value: Any) -> Any:
        """`value` bound to the new modules: itself if it is bound to none. Raises _CannotFollowError."""
        if type(value) in weakref.ProxyTypes:  # looks like what it stands for, and raises if that is gone
            return value
        if isinstance(value, nn.Module):
            return self.new_of.get(id(value), value)
        if type(value) in (weakref.ref, weakref.WeakMethod):
            target = value()
            new = self.moved(target)
            return value if new is target else type(value)(new)
        if isinstance(value, types.MethodType):
            return self.method(value)
        if isinstance(value, functools.partial):
            return self.partial(value)
        if isinstance(value, (tuple, set, frozenset)):
            parts = [self.moved(part) for part in value]
            if all(part is before for part, before in zip(parts, value, strict=True)):
                return value
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, types.FunctionType):
            self.check_function(value)
        return value

    def method(self, method: types.MethodType) -> Any:
        """The new class's method of that name for one of the old class; else the same function, bound to the new."""
        self.moved(method.__func__)
        owner = self.moved(method.__self__)
        if owner is method.__self__:
            return method
        function: Any = method.__func__
        name = getattr(function, "__name__", "")
        if isinstance(owner, nn.Module) and getattr(self.old_of.get(type(owner)), name, None) is function:
            function = getattr(type(owner), name, None)
            if function is None:
                raise _CannotFollowError
        return types.MethodType(function, owner)

    def partial(self, value: functools.partial[Any]) -> functools.partial[Any]:
        parts = (value.func, value.args, tuple(value.keywords.items()), tuple(vars(value).items()))
        moved = self.moved(parts)
        if moved is parts:
            return value
        function, args, keywords, attributes = moved
        new = type(value)(function, *args, **dict(keywords))
        vars(new).update(attributes)  # functools.update_wrapper puts the wrapped method there
        return new

    def check_function(self, function: types.FunctionType) -> None:
        """Raise _CannotFollowError where the function itself holds a module that was replaced."""
        if id(function) in self.seen:
            return
        self.seen.add(id(function))
        for part in _held(function):
            if self.moved(part) is not part:
                raise _CannotFollowError


class _CannotFollowError(Exception):
    """What is bound to an old module can't be bound to the new one."""


def _held(function: types.FunctionType) -> Iterator[Any]:
    """What a function holds beside its globals."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # nothing in it yet, or no more
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()


def _is_compiled(module: nn.Module) -> bool:
    """Whether it is what `torch.compile(module)` returns; by its looks, for its class is dear to import."""
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules
