"""One rank of a job: python rank.py DIRECTORY STEPS [KILL_AT]. It trains by numpy alone, dies of SIGKILL at
KILL_AT the first time, and writes its weights' digest to DIRECTORY/result.RANK at the end."""

import hashlib
import os
import signal
import sys
from pathlib import Path

import numpy as np

import meshstage


def main() -> None:
    directory, count = Path(sys.argv[1]), int(sys.argv[2])
    kill_at = int(sys.argv[3]) if len(sys.argv) > 3 else None
    died = directory / "died"
    weights = np.linspace(-1, 1, 10_000)
    momentum = np.zeros_like(weights)
    state = {"weights": weights, "momentum": momentum, "seen": [0]}
    with meshstage.Checkpointer(
        job="ranks", directory=directory, vault_directory=directory, deadline=20.0
    ) as ckpt:
        for step in ckpt.steps(state, count, stage_every=3, overlap=True):
            with step:
                gradient = np.sin(weights * (step.number + 1) + ckpt.rank)
                ckpt.all_reduce(gradient, "avg")
                if step.number == kill_at and ckpt.rank == 1 and not died.exists():
                    died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                step.before_update()
                momentum *= 0.9
                momentum += gradient
                weights[:] -= 0.01 * momentum
                state["seen"][0] += step.number
    digest = hashlib.sha256(weights.tobytes() + momentum.tobytes()).hexdigest()
    (directory / f"result.{ckpt.rank}").write_text(f"{digest} {state['seen'][0]}")


main()
