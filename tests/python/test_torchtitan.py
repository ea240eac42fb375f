"""meshstage.torchtitan.CheckpointManager with torchtitan's own containers, where torchtitan is installed."""

import argparse
import importlib.util
import os
import subprocess
import sys
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
from torchtitan_training import Training  # noqa: E402

from meshstage._dcp_files import METADATA, THEIR_METADATA  # noqa: E402
from meshstage.errors import InvalidState  # noqa: E402
from meshstage.torch import Stager  # noqa: E402
from meshstage.torchtitan import CheckpointManager  # noqa: E402

pytestmark = pytest.mark.usefixtures("quiet", "one_rank")


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


RANK = Path(__file__).parent / "torchtitan_rank.py"


def start(ranks, folder, until, mode, result):
    """A training of so many processes, until a step; what each has at the end, in its own file."""
    launcher = [sys.executable, "-m", "meshstage", "run", "-n", str(ranks), "--max-restarts", "0", "--"]
    done = subprocess.run(
        [*launcher, sys.executable, RANK, folder, str(until), mode, result],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    there = [Path(f"{result}.{rank}") for rank in range(ranks)]
    # A rank that has done its work may still be aborted by torch's Gloo thread.
    assert all(path.exists() for path in there), done.stdout
    return [torch.load(path) for path in there]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What two processes have at step 7 that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return start(2, folder / "a", 7, "disabled", folder / "result")


@pytest.mark.parametrize("mode", ["disabled", "async", "async_with_pinned_mem"])
def test_a_training_of_two_processes_with_fsdp2_goes_on_in_new_processes(tmp_path, mode, undisturbed):
    first = start(2, tmp_path / "b", 5, mode, tmp_path / "first")
    again = start(2, tmp_path / "b", 7, mode, tmp_path / "again")
    assert [rank["begun_at"] for rank in first + again] == [0, 0, 4, 4]
    for ours, wanted in zip(again, undisturbed, strict=True):
        torch.testing.assert_close(ours, {**wanted, "begun_at": 4}, rtol=0, atol=0)
    assert not torch.equal(again[0]["local"]["model.0.weight"], again[1]["local"]["model.0.weight"])
    if mode != "disabled":
        return
    alone = start(1, tmp_path / "b", 7, mode, tmp_path / "alone")[0]  # another cut
    assert alone["begun_at"] == 6
    torch.testing.assert_close(alone["whole"], undisturbed[0]["whole"], rtol=0, atol=0)


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
