"""Fixtures of all tests."""

import pytest
import torch


@pytest.fixture
def native_kernels():
    """Without oneDNN torch.nn runs ATen's own loops, which the readable path equals bit for bit."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield
