"""Every test of a flow draws the same weights, in whatever order the tests run."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
