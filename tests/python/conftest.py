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
def gloo():
    """For tests whose processes use torch's Gloo."""
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no Gloo")


@pytest.fixture
def make(request, tmp_path):
    """Makes a job's only rank, anew each time: what a restart after a crash does. The job is named as the test's file."""
    import meshstage

    job = request.module.__name__.removeprefix("test_")
    made = []

    def one(**options):
        for old in made:
            old.close()
        made.append(
            meshstage.Checkpointer(
                job=job, directory=tmp_path, vault_directory=tmp_path, rank=0, world_size=1, **options
            )
        )
        return made[-1]

    yield one
    for old in made:
        old.close()


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
