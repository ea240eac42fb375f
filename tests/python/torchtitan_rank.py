"""One rank of a training with torchtitan's containers: torchtitan_rank.py FOLDER UNTIL MODE RESULT.
FSDP2 cuts its model. It loads the newest save in FOLDER, trains until step UNTIL, saving each
second step, and leaves what it has in RESULT.<rank>."""

import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torchtitan_training import Training


def main(folder: str, until: int, mode: str, result: str) -> None:
    warnings.simplefilter("ignore")  # DCP's own
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    training = Training(folder, mesh=mesh, async_mode=mode)
    training.manager.load()
    begun_at = training.progress.step
    training.train(until).close()
    tensors, schedulers, losses = training.bits()
    local = {name: getattr(value, "_local_tensor", value) for name, value in tensors.items()}
    whole = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in tensors.items()
    }
    left = dict(begun_at=begun_at, local=local, whole=whole, schedulers=schedulers, losses=losses)
    path = f"{result}.{dist.get_rank()}"
    torch.save(left, path + ".part")
    os.replace(path + ".part", path)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":  # async_with_pinned_mem starts a process, which imports this file
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
