"""What the tests of the Python package share."""

import pytest


@pytest.fixture
def torch():
    return pytest.importorskip("torch")
