#!/usr/bin/env python3
"""FSDP2 on CPUs. All ranks are started anew when one dies; they come back from memory.

    python -m meshstage run -n 2 --restart all --job fsdp2 -- python fsdp2.py DIRECTORY STEPS

    export MESHSTAGE_JOB=fsdp2 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    torchrun --standalone --nproc-per-node 2 --max-restarts 100 fsdp2.py DIRECTORY STEPS

A third word makes it HSDP: 2, with four ranks, is two replicas of shards over two ranks each.
The five lines marked (ms) are meshstage's. Each rank keeps its own shards, and one other's. Started
again with another number of ranks, after all have died or ended, the job goes on from its files.
"""

import gc
import hashlib
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import meshstage.torch  # (ms)


def main(directory: str, count: int, replicas: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    shards = dist.get_world_size() // replicas
    if replicas == 1:
        mesh = init_device_mesh("cpu", (shards,))
    else:
        mesh = init_device_mesh("cpu", (replicas, shards), mesh_dim_names=("replicate", "shard"))
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 63), nn.GELU(), nn.Dropout(0.1), nn.Linear(63, 1))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.manual_seed(100 + rank)  # data and dropout of its own
    state = meshstage.torch.state(model=model, optimizer=optimizer, rng=True)  # (ms)
    with meshstage.Checkpointer(directory=directory, any_world=True) as ckpt:  # (ms)
        for step in ckpt.steps(state, count, stage_every=5):  # (ms)
            with step:  # (ms)
                inputs = torch.randn(32, 16)
                loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if rank == 0 and step.number % 10 == 0:
                    print(f"step {step.number}: loss {loss.item():.6f}", flush=True)
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():  # the whole of each, the same on all ranks
        digest.update(tensor.full_tensor().numpy().tobytes())
    print(f"{count} steps: rank {rank}: {digest.hexdigest()}", flush=True)


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
gc.collect()  # the model, before its process group; else torch's threads may abort the exit
dist.destroy_process_group()
