"""One rank of a torch job, as rank.py: python torch_rank.py DIRECTORY STEPS [KILL_AT]."""

import hashlib
import os
import signal
import sys
from pathlib import Path

import torch

import meshstage
import meshstage.torch


def main() -> None:
    directory, count = Path(sys.argv[1]), int(sys.argv[2])
    kill_at = int(sys.argv[3]) if len(sys.argv) > 3 else None
    died = directory / "died"
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Dropout(0.2), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.9)
    with meshstage.Checkpointer(
        job="ranks", directory=directory, vault_directory=directory, deadline=60.0
    ) as ckpt:
        torch.manual_seed(100 + ckpt.rank)  # dropout and data of its own
        state = meshstage.torch.state(
            model=model, optimizer=optimizer, scheduler=scheduler, rng=True
        )
        for step in ckpt.steps(state, count, stage_every=3, overlap=True):
            with step:
                optimizer.zero_grad()
                model(torch.randn(16, 8)).square().mean().backward()
                for parameter in model.parameters():
                    ckpt.all_reduce(parameter.grad, "avg")
                if step.number == kill_at and ckpt.rank == 1 and not died.exists():
                    died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                step.before_update()
                optimizer.step()
                scheduler.step()
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(bytes(tensor.untyped_storage()))
    result = f"{digest.hexdigest()} {scheduler.get_last_lr()}"
    (directory / f"result.{ckpt.rank}").write_text(result)


main()
