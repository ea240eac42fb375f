"""DTensors: by their local tensor, and for a Checkpointer with their mesh. One process, so that it runs everywhere."""

import pytest

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")

from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor, Shard, distribute_tensor  # noqa: E402

import meshstage  # noqa: E402
import meshstage.torch  # noqa: E402


@pytest.fixture
def mesh(one_rank):
    return init_device_mesh("cpu", (1,))


def test_a_dtensor_is_staged_by_its_local_tensor(mesh):
    source = distribute_tensor(torch.arange(12.0).reshape(4, 3), mesh, [Shard(0)])
    stager = meshstage.torch.StateDictStager()
    staged = stager.stage({"d": source, "local": source.to_local()})
    source.to_local().zero_()
    assert type(staged["d"]) is DTensor and staged["d"]._spec == source._spec
    assert torch.equal(staged["d"].to_local(), torch.arange(12.0).reshape(4, 3))
    same = staged["local"].untyped_storage().data_ptr()
    assert staged["d"].to_local().untyped_storage().data_ptr() == same
    assert len(stager._cached_storage_mapping) == 1
    assert torch.equal(stager.stage(source).to_local(), torch.zeros(4, 3))


def test_a_module_of_fsdp2_and_its_optimizer_come_back_in_place(mesh, tmp_path):
    def training():
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.AdamW(model.parameters())
        return model, optimizer, meshstage.torch.state(model=model, optimizer=optimizer)

    def train(model, optimizer, steps):
        for i in range(steps):
            optimizer.zero_grad()
            model(torch.full((3, 4), float(i))).square().mean().backward()
            optimizer.step()

    def bits(model, optimizer):
        state = optimizer.state_dict()["state"]
        tensors = [*model.parameters(), *(s["exp_avg"] for s in state.values())]
        assert all(isinstance(t, DTensor) for t in tensors)
        return [t.to_local().clone() for t in tensors]

    def rank():
        return meshstage.Checkpointer(
            job="fsdp", directory=tmp_path, vault_directory=tmp_path, rank=0, world_size=1
        )

    model, optimizer, state = training()
    ckpt = rank()
    ckpt.recover(state)
    train(model, optimizer, 3)
    assert ckpt.stage(state, 3).outcome(60) == "complete"
    expected = bits(model, optimizer)
    ckpt.close()

    model, optimizer, state = training()
    ckpt = rank()
    assert ckpt.recover(state).step == 3
    ckpt.close()
    for one, other in zip(bits(model, optimizer), expected, strict=True):
        assert torch.equal(one, other)
    train(model, optimizer, 1)  # still a module of FSDP2
