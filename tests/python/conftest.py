"""What the tests of the Python package share."""

import warnings

import pytest


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def one_rank():
    """The default group: Gloo, with this process alone."""
    dist = pytest.importorskip("torch.distributed")
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP's own, about processes and sharding
        yield


@pytest.fixture(params=[False, True], ids=["private", "shared"])
def stager(request):
    pytest.importorskip("torch")
    from meshstage.torch import StateDictStager

    with_shared = StateDictStager(share_memory=request.param)
    yield with_shared
    with_shared.close()
