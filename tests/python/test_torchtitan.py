"""meshstage.torchtitan.CheckpointManager with torchtitan's own containers, where torchtitan is installed."""

import argparse
import importlib.util
from concurrent.futures import Future
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchtitan") is None:
    pytest.skip("torchtitan is not installed", allow_module_level=True)
checkpoint = pytest.importorskip("torchtitan.components.checkpoint")
if not hasattr(checkpoint.CheckpointManager, "Config"):
    pytest.skip("this torchtitan is older than 0.3.0", allow_module_level=True)

from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw  # noqa: E402

from meshstage._dcp_files import METADATA, THEIR_METADATA  # noqa: E402
from meshstage.errors import InvalidState  # noqa: E402
from meshstage.torch import Stager  # noqa: E402
from meshstage.torchtitan import CheckpointManager  # noqa: E402

pytestmark = pytest.mark.usefixtures("quiet", "one_rank")


class TrainState:
    """As torchtitan's trainer keeps it."""

    def __init__(self):
        self.step, self.losses = 0, []

    def state_dict(self):
        return {"step": torch.tensor(self.step, dtype=torch.int32), "losses": self.losses}

    def load_state_dict(self, state):
        self.step, self.losses = int(state["step"]), state["losses"]


class Training:
    """torchtitan's containers around a small model, and a checkpoint manager."""

    def __init__(self, folder, kind=CheckpointManager, **options):
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
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


def assert_same(one, other):
    torch.testing.assert_close(one.bits(), other.bits(), rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["disabled", "async", "async_with_pinned_mem"])
def test_a_training_goes_on_from_its_newest_save(tmp_path, mode, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "localhost")  # not every host's own name has an address
    undisturbed = Training(tmp_path / "a").train(7).close()
    Training(tmp_path / "b", async_mode=mode).train(5).close()
    folder = tmp_path / "b" / "checkpoint"
    assert sorted(path.name for path in folder.iterdir()) == ["step-2", "step-4"]
    assert all((path / METADATA).exists() for path in folder.iterdir())
    again = Training(tmp_path / "b", async_mode=mode)
    assert type(again.manager) is CheckpointManager
    assert mode == "disabled" or isinstance(again.manager.stager, Stager)
    assert again.manager.load() and again.progress.step == 4
    again.train(7).close()
    assert_same(again, undisturbed)


def test_a_save_that_was_cut_off_is_not_loaded(tmp_path):
    Training(tmp_path).train(4).close()
    (tmp_path / "checkpoint" / "step-4" / METADATA).unlink()
    again = Training(tmp_path)
    assert again.manager.load() and again.progress.step == 2
    again.close()


def test_a_folder_that_torchtitan_wrote_is_loaded(tmp_path):
    theirs = Training(tmp_path, kind=checkpoint.CheckpointManager).train(4).close()
    ours = Training(tmp_path)
    assert ours.manager.load() and ours.progress.step == 4
    assert_same(ours, theirs)
    ours.train(6).close()
    assert not (tmp_path / "checkpoint" / "step-4" / METADATA).exists()
    assert (tmp_path / "checkpoint" / "step-6" / METADATA).exists()


def test_old_steps_are_removed_and_a_missing_one_is_refused(tmp_path):
    Training(tmp_path, keep_latest_k=2).train(8).close()
    folder = tmp_path / "checkpoint"
    assert sorted(path.name for path in folder.iterdir()) == ["step-6", "step-8"]
    again = Training(tmp_path)
    with pytest.raises(FileNotFoundError):
        again.manager.load(step=2)
    again.close()


def test_close_waits_for_an_asynchronous_save_and_raises_its_error(tmp_path):
    training = Training(tmp_path, async_mode="async").train(2)
    training.manager.maybe_wait_for_saving()
    training.manager.save_future = Future()
    training.manager.save_future.set_exception(OSError("the disk is full"))
    with pytest.raises(OSError, match="the disk is full"):
        training.close()
    training.close()  # nothing is left to say
    with pytest.raises(InvalidState):  # its other parts were closed, too
        training.manager.stager.stage({})


def test_a_save_replaces_a_step_that_torchtitan_wrote(tmp_path):
    Training(tmp_path, kind=checkpoint.CheckpointManager).train(2).close()
    ours = Training(tmp_path)
    with torch.no_grad():
        ours.model[0].weight.fill_(7)
    ours.progress.step = 1
    ours.train(2).close()
    assert not (ours.folder / "step-2" / THEIR_METADATA).exists()
    again = Training(tmp_path)
    assert again.manager.load(step=2)
    assert_same(again.close(), ours)


def test_a_step_with_two_saves_is_refused(tmp_path):
    ours = Training(tmp_path).train(2).close()
    before = ours.bits()
    (ours.folder / "step-2" / THEIR_METADATA).touch()
    with pytest.raises(InvalidState, match="step-2 has two saves: metadata.json is ours, .metadata"):
        ours.manager.load(step=2)
    torch.testing.assert_close(ours.bits(), before, rtol=0, atol=0)


def test_a_step_that_was_cut_off_is_refused_by_its_number(tmp_path):
    training = Training(tmp_path).train(2).close()
    (training.folder / "step-2" / METADATA).unlink()
    with pytest.raises(CheckpointException, match=f"no save was completed in .*step-2: it has no {METADATA}"):
        training.manager.load(step=2)


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_whole_steps_are_kept_rather_than_those_that_were_cut_off(tmp_path, mode):
    first = Training(tmp_path, keep_latest_k=2, async_mode=mode).train(4).close()
    (first.folder / "step-4" / METADATA).unlink()
    again = Training(tmp_path, keep_latest_k=2, async_mode=mode)
    assert again.manager.load() and again.progress.step == 2
    again.progress.step = 4  # the next save is step 6: the one that was cut off stays so
    again.train(6).close()
    assert again.steps() == ["step-2", "step-4", "step-6"]
    last = Training(tmp_path, keep_latest_k=2, async_mode=mode)
    assert last.manager.load()
    last.train(8).close()
    assert last.steps() == ["step-6", "step-8"]


def test_a_state_whose_pickle_may_run_code_needs_a_trusted_folder(tmp_path):
    def training(**options):
        made = Training(tmp_path, **options)
        made.progress.losses = [argparse.Namespace(seen=3)]
        return made

    training().train(2).close()
    refused = training()
    with pytest.raises(CheckpointException, match="may run code.*trusted=True"):
        refused.manager.load()
    refused.close()
    trusting = training(trusted=True)
    assert trusting.manager.load() and trusting.progress.losses[0] == argparse.Namespace(seen=3)
    trusting.close()


def test_nothing_is_there_at_first_and_a_disabled_manager_does_nothing(tmp_path):
    first = Training(tmp_path)
    assert not first.manager.load()
    first.close()
    disabled = CheckpointManager.Config().build(
        dataloader=None, model_parts=[], optimizers=None, lr_schedulers=None, states={}, sd_adapter=None
    )
    assert not disabled.load() and not disabled.save(1)
    disabled.close()
