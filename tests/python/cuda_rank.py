"""One rank of a job on a GPU, as rank.py: python cuda_rank.py DIRECTORY STEPS [KILL_AT]. The model, AdamW's moments and
the generator are on the GPU, AdamW's steps and the CPU's generator are not."""

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
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.Dropout(0.2), torch.nn.Linear(256, 1)
    ).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    with meshstage.Checkpointer(
        job="ranks", directory=directory, vault_directory=os.environ["VAULT"], deadline=20.0
    ) as ckpt:
        torch.manual_seed(100 + ckpt.rank)  # dropout and data of its own
        state = meshstage.torch.state(model=model, optimizer=optimizer, rng=True)
        addresses = [p.data_ptr() for p in model.parameters()]
        with torch.cuda.stream(torch.cuda.Stream()):  # one that the default stream does not order
            for step in ckpt.steps(state, count, stage_every=3, overlap=True):
                with step:
                    optimizer.zero_grad()
                    model(torch.randn(16, 64, device="cuda")).square().mean().backward()
                    for parameter in model.parameters():
                        gradient = parameter.grad.cpu()
                        ckpt.all_reduce(gradient, "avg")
                        parameter.grad.copy_(gradient)
                    if step.number == kill_at and ckpt.rank == 1 and not died.exists():
                        died.touch()
                        os.kill(os.getpid(), signal.SIGKILL)
                    step.before_update()
                    optimizer.step()
            torch.cuda.synchronize()
    assert [p.data_ptr() for p in model.parameters()] == addresses
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    generators = hashlib.sha256(
        torch.get_rng_state().numpy().tobytes() + torch.cuda.get_rng_state().numpy().tobytes()
    )
    digests = f"{digest.hexdigest()} {generators.hexdigest() if ckpt.rank == 0 else ''}"
    (directory / f"result.{ckpt.rank}").write_text(digests)


main()
