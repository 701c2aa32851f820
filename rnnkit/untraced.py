"""What torch.compile leaves alone, from whatever frame it comes."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def untraced(function: F) -> F:
    """Mark `function` as one that the compiler neither traces nor looks into, nor what it calls. Return it.

    It is what torch.compiler.disable does, but nothing is wrapped, so that a call costs no more, and torch._dynamo,
    which takes a second, is not imported. A call from a frame that is traced breaks the graph.
    """
    dynamo: Any = torch._C._dynamo.eval_frame
    try:
        skip = dynamo._FrameExecStrategy(dynamo._FrameAction.SKIP, dynamo._FrameAction.SKIP)  # itself, what it calls
        dynamo.set_code_exec_strategy(function.__code__, skip)
    except AttributeError:  # these are torch's own, and may go
        return torch.compiler.disable(function)  # type: ignore[no-any-return, no-untyped-call]
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    function._torchdynamo_disable_msg = "rnnkit's eager paths are not traced"  # type: ignore[attr-defined]
    return function
