"""What the tests of the Python package share."""

import warnings

import pytest


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP's own, about processes and sharding
        yield
