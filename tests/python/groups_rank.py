"""One rank of a job with DDP, as rank.py: python groups_rank.py DIRECTORY STEPS [KILL_AT [build]]. With "build" it goes
on in the same process after the loss of a rank. DIRECTORY/start.RANK has a line for each process of a rank."""

import gc
import hashlib
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import meshstage as ms


def training(directory: Path, ckpt):
    """A state on process groups that this generation has for itself."""
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
    dist.init_process_group(
        "gloo", f"file://{directory}/torch.{ckpt.generation}", rank=ckpt.rank, world_size=ckpt.world_size
    )  # fmt: skip
    torch.manual_seed(1)
    layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Dropout(0.2), torch.nn.Linear(32, 1))
    model = DistributedDataParallel(layers)
    optimizer = torch.optim.AdamW(model.parameters())
    torch.manual_seed(100 + ckpt.rank)  # dropout and data of its own
    return ms.torch.state(model=model, optimizer=optimizer, rng=True)


def main() -> None:
    directory, count = Path(sys.argv[1]), int(sys.argv[2])
    kill_at = int(sys.argv[3]) if len(sys.argv) > 3 else None
    died = directory / "died"
    torch.set_num_threads(1)
    with ms.Checkpointer(job="ranks", directory=directory, vault_directory=directory, deadline=60.0) as ckpt:
        with open(directory / f"start.{ckpt.rank}", "a") as starts:
            print(os.getpid(), file=starts)

        def build():
            return training(directory, ckpt)

        again = {"build": build} if sys.argv[4:] == ["build"] else {}
        for step in ckpt.steps(build(), count, stage_every=3, **again):
            with step:
                if step.number == kill_at and ckpt.rank == 1 and not died.exists():
                    died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                step.state["model"](torch.randn(16, 8)).square().mean().backward()
                step.state["optimizer"].step()
                step.state["optimizer"].zero_grad()
        digest = hashlib.sha256()
        for tensor in step.state["model"].state_dict().values():
            digest.update(bytes(tensor.untyped_storage()))
        (directory / f"result.{ckpt.rank}").write_text(digest.hexdigest())


status = 0
try:
    main()
except SystemExit as end:
    status = end.code
gc.collect()  # the model, before its process group
dist.destroy_process_group()
sys.exit(status)
