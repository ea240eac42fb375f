"""A process that is killed during dcp.save with meshstage.dcp.Writer: the save before loads, or the new one, whole."""

import multiprocessing
import os
import signal
import sys

import pytest

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")

import torch.distributed as dist  # noqa: E402
from dcp_refusal import refusal  # noqa: E402

from meshstage._dcp_files import METADATA  # noqa: E402
from meshstage.dcp import Reader, Writer  # noqa: E402

pytestmark = pytest.mark.usefixtures("quiet")

# A fork of a process that has imported everything and done nothing.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["pytest", "torch.distributed.checkpoint", "meshstage.dcp"])

WATCHED = {"open", "write", "flush", "fsync", "replace", "unlink", "mkdir", "close"}


def state_of(base):
    return {"a": torch.arange(8.0) + base, "b": torch.full((3, 5), base), "epoch": base}


def save(folder, base, caching=False, **options):
    planner = dcp.DefaultSavePlanner(enable_plan_caching=caching)
    dcp.save(state_of(base), storage_writer=Writer(folder), planner=planner, **options)


def loaded(folder):
    """The base of the save that the folder has: all of it."""
    state = state_of(0)
    dcp.load(state, storage_reader=Reader(folder), no_dist=True)
    want = state_of(state["epoch"])
    assert torch.equal(state["a"], want["a"]) and torch.equal(state["b"], want["b"])
    return state["epoch"]


def die(where):
    """Kills this process before or after a call that Writer makes to the system: the ``where``-th,
    or the one of a name and an event of the profiler, by its number."""
    seen = 0

    def watch(frame, event, called):
        nonlocal seen
        module = frame.f_globals.get("__name__", "")
        if not event.startswith("c_") or not module.startswith(("meshstage", "pathlib")):
            return
        name = getattr(called, "__name__", "")
        if name in WATCHED and (isinstance(where, int) or where[:2] == (name, event)):
            seen += 1
            if seen == (where if isinstance(where, int) else where[2]):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)


def alone(folder, bases, where, caching):
    """Saves; is killed in the last save, if ``where`` comes."""
    for base in bases:
        if base == bases[-1]:
            die(where)
        save(folder, base, caching, no_dist=True)
    sys.setprofile(None)


def run(*arguments):
    child = context.Process(target=alone, args=arguments)
    child.start()
    child.join(60)
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == 0


@pytest.mark.parametrize("caching", [False, True])
def test_a_kill_at_any_moment_leaves_a_whole_save(tmp_path, caching):
    moment, ended, found = 0, False, []
    while not ended:
        moment += 1
        folder = tmp_path / str(moment)
        ended = run(folder, [1, 2, 3], moment, caching)
        found.append(loaded(folder))
        save(folder, 4, no_dist=True)  # what is left over is in nobody's way
        assert loaded(folder) == 4
    assert found == sorted(found) and found.count(2) > 20 and found.count(3) > 1


def test_a_first_save_that_is_killed_is_none(tmp_path):
    moment, ended, found = 0, False, []
    while not ended:
        moment += 1
        folder = tmp_path / str(moment)
        ended = run(folder, [1], moment, False)
        if (folder / METADATA).exists():
            found.append(loaded(folder))
        else:
            found.append(0)
            refusal(lambda: loaded(folder), "no save was completed in|does not exist")
    assert found == sorted(found) and found.count(0) > 20 and found.count(1) > 1


def rank_main(rank, folder, victim, where):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
    save(folder, 1)
    if rank == victim:
        die(where)
    save(folder, 2)


@pytest.mark.parametrize(
    "victim, where, want",
    [
        (1, ("write", "c_call", 2), 1),  # its head is written
        (1, ("fsync", "c_call", 1), 1),
        (1, ("fsync", "c_return", 2), 1),  # its file is there, the coordinator does not know it
        (0, ("write", "c_call", 2), 1),
        (0, ("flush", "c_call", 2), 1),  # metadata.json.tmp
        (0, ("replace", "c_call", 1), 1),
        (0, ("replace", "c_return", 1), 2),
        (0, ("unlink", "c_call", 1), 2),  # the files of the save before
    ],
)
def test_a_rank_that_is_killed_fails_the_save_of_all(tmp_path, victim, where, want):
    folder = tmp_path / "c"
    ranks = [context.Process(target=rank_main, args=(rank, str(folder), victim, where)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert ranks[victim].exitcode == -signal.SIGKILL
    assert ranks[1 - victim].exitcode == 1  # its dcp.save raised
    assert loaded(folder) == want
