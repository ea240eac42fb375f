#!/usr/bin/env python3
"""DDP on CPUs. All ranks are started anew when one dies; they come back from memory.

    python -m meshstage run -n 2 --restart all --job ddp -- python ddp.py DIRECTORY STEPS

    export MESHSTAGE_JOB=ddp TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    torchrun --standalone --nproc-per-node 2 --max-restarts 100 ddp.py DIRECTORY STEPS

The five lines marked (ms) are meshstage's; the last block prints the weights' digest.
"""

import gc
import hashlib
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import meshstage.torch  # (ms)


def main(directory: str, count: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 1))
    model = DistributedDataParallel(layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.manual_seed(100 + rank)  # data and dropout of its own
    state = meshstage.torch.state(model=model, optimizer=optimizer, rng=True)  # (ms)
    with meshstage.Checkpointer(directory=directory) as ckpt:  # (ms)
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
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    print(f"{count} steps: rank {rank}: {digest.hexdigest()}", flush=True)


main(sys.argv[1], int(sys.argv[2]))
gc.collect()  # the model, before its process group; else torch's threads may abort the exit
dist.destroy_process_group()
