"""Every test of a flow draws the same weights, in whatever order the tests run."""

import pytest
import torch

torch.set_num_threads(1)  # on tensors this small, threads only wait for each other


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
