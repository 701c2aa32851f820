"""Fixtures of the tests of parity."""

import pytest
import torch


@pytest.fixture(autouse=True)
def single_thread():
    """The cases are small, and one thread adds in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
