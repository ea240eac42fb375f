"""meshstage.torch.StateDictStager with share_memory: tensors that other processes map."""

import copy
import io
import multiprocessing
import pickle

import pytest

torch = pytest.importorskip("torch")

from meshstage.torch import StateDictStager  # noqa: E402
from meshstage.torch._shared import SharedStorage  # noqa: E402


@pytest.fixture
def shared():
    source = torch.arange(6.0)
    stager = StateDictStager(share_memory=True)
    return stager, source, stager.stage({"a": source, "b": source[2:]})


def test_shared_tensors_say_so(shared):
    _, _, staged = shared
    assert staged["a"].is_shared() and staged["b"].is_shared()
    assert type(staged["a"].untyped_storage()) is SharedStorage
    assert not StateDictStager().stage(torch.ones(2)).is_shared()


def test_shared_memory_is_one_mapping():
    stager = StateDictStager(share_memory=True)
    staged = stager.stage([torch.zeros(100) for _ in range(50)])
    assert len({t.untyped_storage().location[0] for t in staged}) == 1


def test_share_memory_of_a_shared_storage_is_itself(shared):
    storage = shared[2]["a"].untyped_storage()
    assert storage.share_memory_() is storage
    assert shared[2]["a"].share_memory_().data_ptr() == storage.data_ptr()


def test_cpu_of_a_shared_storage_is_itself(shared):
    storage = shared[2]["a"].untyped_storage()
    assert storage.cpu() is storage and shared[2]["a"].cpu() is shared[2]["a"]


def test_new_storages_of_its_type_are_ordinary(shared):
    made = type(shared[2]["a"].untyped_storage())(16)
    assert type(made) is torch.UntypedStorage and made.nbytes() == 16 and not made.is_shared()


def test_copies_of_shared_tensors_are_ordinary_and_keep_ties(shared):
    _, source, staged = shared
    copied = copy.deepcopy(staged)
    source.zero_()
    shared[0].stage({"a": source})
    assert torch.equal(copied["a"], torch.arange(6.0)) and not copied["a"].is_shared()
    assert copied["b"].untyped_storage().data_ptr() == copied["a"].data_ptr()


def test_pickles_and_files_of_shared_tensors_stand_alone(shared):
    _, _, staged = shared
    again = pickle.loads(pickle.dumps(staged["a"].untyped_storage()))
    assert again.tolist() == staged["a"].untyped_storage().tolist()
    assert torch.equal(pickle.loads(pickle.dumps(staged))["b"], torch.arange(6.0)[2:])
    file = io.BytesIO()
    torch.save(staged, file)
    file.seek(0)
    loaded = torch.load(file)  # weights_only, its default
    assert torch.equal(loaded["a"], torch.arange(6.0))
    assert loaded["b"].untyped_storage().data_ptr() == loaded["a"].data_ptr()


def _add_one(staged, tied):
    same = staged["a"].untyped_storage().data_ptr() == staged["b"].untyped_storage().data_ptr()
    tied.put(same and staged["a"].is_shared())
    staged["a"].add_(1)


def test_another_process_gets_a_handle_not_a_copy(shared):
    _, _, staged = shared
    spawn = multiprocessing.get_context("spawn")
    tied = spawn.Queue()
    child = spawn.Process(target=_add_one, args=(staged, tied))
    child.start()
    assert tied.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    assert torch.equal(staged["a"], torch.arange(6.0) + 1)
