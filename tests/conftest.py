"""Fixtures of all tests."""

import os
from types import SimpleNamespace

import pytest
import torch

import rnnkit
from rnnkit.fast import fused

# The tensors are small and there are as many workers as cores: more threads would only wait for each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

# torch.manual_seed writes down the whole stack three times, to tell where a seed was set should a device's start fail:
# under pytest's deep stack that takes longer than a small layer with its gradients.
for _device in (torch.cuda, torch.xpu, torch.mtia):
    if hasattr(_device, "traceback"):
        _device.traceback = SimpleNamespace(format_stack=list)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run what is marked slow, too")


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked slow (compilers, processes, whole grids: seconds each), unless --slow asks for it."""
    if not config.getoption("--slow"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture
def native_loops():
    """Without oneDNN torch.nn runs ATen's own loops."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.fixture
def native_kernels(monkeypatch, native_loops):
    """The readable path, which equals ATen's loops bit for bit."""
    monkeypatch.setattr(rnnkit.RNNBase, "path", "readable")


@pytest.fixture
def compiled_by_none(monkeypatch):
    """What the fused path has compiled is run as it is: that inductor compiles it right, one test for a kind shows."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    fused.compiled.cache_clear()
    yield
    fused.compiled.cache_clear()


@pytest.fixture(params=["readable", "always fast"])
def path(request, monkeypatch, native_kernels):
    """Either path, for all layers; the fast one also where it doesn't pay."""
    monkeypatch.setattr(rnnkit.RNNBase, "path", request.param)
    return request.param
