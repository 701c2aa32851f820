"""The subject: any module that offers the six classes, known by its name, and the class attributes it is run with."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from types import ModuleType
from typing import Any

import torch

from .cases import CLASSES

#: Class attributes by name: what `--set NAME=VALUE` gives. All of them are passed to the processes that a run starts.
Settings = dict[str, Any]


def load(name: str, settings: Settings | None = None) -> Any:
    """Import the module called `name`; with settings, return its six classes with these attributes.

    A class that has one of the attributes is replaced by a subclass of the same name in which it is set; a class that
    has none stays. ValueError if no class has it.
    """
    module = importlib.import_module(name)
    if not settings:
        return module
    classes = {class_name: getattr(module, class_name) for class_name in CLASSES}
    for attribute in settings:
        if not any(hasattr(cls, attribute) for cls in classes.values()):
            raise ValueError(f"no class of {name} has an attribute {attribute}")
    key = f"{name}_set_" + "_".join(f"{ord(letter):x}" for letter in repr(sorted(settings.items())))
    if key not in sys.modules:  # known to pickle under this key
        configured = ModuleType(name)
        vars(configured)["settings"] = settings
        for class_name, cls in classes.items():
            own = {attribute: value for attribute, value in settings.items() if hasattr(cls, attribute)}
            vars(configured)[class_name] = type(class_name, (cls,), {**own, "__module__": key}) if own else cls
        sys.modules[key] = configured
    return sys.modules[key]


def setting(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE: a Python literal, or else the text itself."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a command line name the subject, `--subject MODULE`, and its settings, `--set NAME=VALUE`."""
    parser.add_argument("--subject", metavar="MODULE", default="rnnkit", help="default: rnnkit")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", dest="settings", type=setting, action="append", default=[],
        help="a class attribute of the subject, such as path=readable; may be given several times",
    )  # fmt: skip


def add_device(parser: argparse.ArgumentParser) -> None:
    """Let a command line name the device that both sides run on, `--device DEVICE`."""
    parser.add_argument("--device", default="cpu", help="where torch.nn and the subject run: cpu (default), cuda")


def usable(parser: argparse.ArgumentParser, device: str) -> str:
    """Return the device, or end with a usage error."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"--device {device}: {str(error).splitlines()[0]}")
    return device


def chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Any:
    """Return the subject that the command line names, or end with a usage error."""
    options.settings = dict(options.settings)
    try:
        namespace = load(options.subject, options.settings)
        for name in CLASSES:
            getattr(namespace, name)
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(f"the subject {options.subject}: {error}")
    return namespace


def title(options: argparse.Namespace) -> str:
    """Name the subject and its settings in a few words."""
    subject: str = options.subject
    return subject + "".join(f", {name}={value}" for name, value in options.settings.items())
