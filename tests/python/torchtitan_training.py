"""A small training with torchtitan's own containers, for the tests of meshstage.torchtitan."""

from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw

from meshstage.torchtitan import CheckpointManager


class TrainState:
    """As torchtitan's trainer keeps it."""

    def __init__(self):
        self.step, self.losses = 0, []

    def state_dict(self):
        return {"step": torch.tensor(self.step, dtype=torch.int32), "losses": self.losses}

    def load_state_dict(self, state):
        self.step, self.losses = int(state["step"]), state["losses"]


class Training:
    """torchtitan's containers around a small model, and a checkpoint manager. With a mesh FSDP2 cuts
    the model."""

    def __init__(self, folder, kind=CheckpointManager, mesh=None, **options):
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
        if mesh is not None:
            fully_shard(self.model, mesh=mesh)
        config = default_adamw(lr=0.1)
        config.implementation = "for-loop"
        self.optimizers = config.build(model_parts=[self.model])
        self.schedulers = LRSchedulersContainer.Config(warmup_steps=2).build(
            optimizers=self.optimizers, training_steps=20
        )
        self.progress = TrainState()
        config = kind.Config(enable=True, interval=2, last_save_model_only=False, **options)
        self.manager = config.build(
            dataloader=None, model_parts=[self.model], optimizers=self.optimizers,
            lr_schedulers=self.schedulers, states={"train_state": self.progress}, sd_adapter=None,
            base_folder=str(folder),
        )  # fmt: skip
        self.folder = Path(folder) / "checkpoint"

    def steps(self):
        return sorted(path.name for path in self.folder.iterdir())

    def train(self, until):
        while self.progress.step < until:
            self.progress.step += 1
            inputs = torch.full((3, 4), float(self.progress.step))
            loss = self.model(inputs).square().mean()
            loss.backward()
            self.manager.maybe_wait_for_staging()
            self.optimizers.step()
            self.optimizers.zero_grad()
            self.schedulers.step()
            self.progress.losses.append(loss.item())
            self.manager.save(self.progress.step)
        return self

    def close(self):
        self.manager.close()
        return self

    def bits(self):
        state = {f"model.{k}": v.clone() for k, v in self.model.state_dict().items()}
        state |= {k: v.clone() for k, v in self.optimizers.state_dict().items() if torch.is_tensor(v)}
        assert any("exp_avg" in name for name in state)
        return state, self.schedulers.state_dict(), self.progress.losses
