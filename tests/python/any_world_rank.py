"""One rank of a job whose number of ranks, or cut, changes from start to start:
python any_world_rank.py DIRECTORY STEP CUT RANKS_BEFORE
It recovers STEP (0: the first start), checks it against a model that torch itself has cut, and stages STEP + 10.
CUT is how this start's model lies on its ranks: tp+fsdp (two by two), fsdp, tp, or whole."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import meshstage
import meshstage.torch


def model_at(step: int, cut: str) -> nn.Module:
    """Values that no two steps, and no two elements, have in common; then torch cuts them."""
    model = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 7))
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            values = torch.arange(parameter.numel()).reshape(parameter.shape)
            parameter.copy_(values / 128 + i + 100 * step)
    if cut == "tp+fsdp":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        parallelize_module(model[0], mesh["tp"], ColwiseParallel())
        fully_shard(model[0], mesh=mesh["dp"])
        fully_shard(model[1], mesh=mesh["dp"])
    elif cut == "tp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})
    elif cut == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model:
            fully_shard(layer, mesh=mesh)
    return model


def here(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank has of it."""
    return getattr(tensor, "_local_tensor", tensor)


def set_to(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, cut: str) -> None:
    with torch.no_grad():
        for parameter, wanted in zip(model.parameters(), model_at(step, cut).parameters(), strict=True):
            here(parameter).copy_(here(wanted))
            here(optimizer.state[parameter]["exp_avg"]).copy_(here(wanted) * 2)
            optimizer.state[parameter]["step"].fill_(step)


def check(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, cut: str) -> None:
    wanted = model_at(step, cut).parameters()
    for (name, parameter), expected in zip(model.named_parameters(), wanted, strict=True):
        assert torch.equal(here(parameter), here(expected)), f"{name}: {here(parameter)}"
        state = optimizer.state[parameter]
        assert torch.equal(here(state["exp_avg"]), here(expected) * 2), f"{name}: exp_avg"
        assert state["step"].item() == step, f"{name}: step {state['step']}"


def main(directory: Path, step: int, cut: str, before: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = model_at(0 if step == 0 else 7777, cut)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.manual_seed(1000 + rank)
    state = meshstage.torch.state(model=model, optimizer=optimizer, seen=0, rng=True)
    with meshstage.Checkpointer(
        job="any-world", directory=directory, vault_directory=directory,
        any_world={"seen": "summed"},
    ) as ckpt:  # fmt: skip
        got = ckpt.recover(state)
        generator = torch.get_rng_state()  # before check() draws of it
        assert got.step == step, got
        if step > 0:
            check(model, optimizer, step, cut)
            old = got.old_world_size
            assert old == before, got
            # What the ranks of before have counted; each has its own generator of random numbers.
            assert state["seen"] == (sum(range(1, old + 1)) if rank == 0 else 0), state["seen"]
            torch_seed = 2000 + rank if rank < old else 1000 + rank
            assert torch.equal(generator, torch.manual_seed(torch_seed).get_state())
        set_to(model, optimizer, step + 10, cut)
        state["seen"] = rank + 1
        torch.manual_seed(2000 + rank)
        assert ckpt.stage(state, step + 10).outcome(60) == "complete"
    (directory / f"done.{step}.{rank}").touch()
    dist.barrier()
    dist.destroy_process_group()


main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
