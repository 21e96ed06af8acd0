"""What the model's tests share."""

import os

import pytest


@pytest.fixture
def interpreter_asked_for():
    """For tests on a CPU of what kernels are asked to do."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("on a CPU kernels need TRITON_INTERPRET=1")
