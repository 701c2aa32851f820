"""Fixtures of all tests."""

import pytest
import torch

import rnnkit


@pytest.fixture
def native_kernels(monkeypatch):
    """Without oneDNN torch.nn runs ATen's own loops, which the readable path equals bit for bit."""
    monkeypatch.setattr(rnnkit.RNNBase, "path", "readable")
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.fixture(params=["readable", "fast"])
def path(request, monkeypatch, native_kernels):
    """Either path, for all layers."""
    monkeypatch.setattr(rnnkit.RNNBase, "path", request.param)
    return request.param
