"""Jobs that come back with another number of ranks, or with another cut."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import meshstage
from meshstage.errors import InvalidArgument

RANK = Path(__file__).parent / "any_world_rank.py"


def run(ranks: int, program: Path, *words) -> subprocess.CompletedProcess:
    """So many ranks of a program, without restarts. Where torch is, one thread each."""
    launcher = [sys.executable, "-m", "meshstage", "run", "-n", str(ranks), "--max-restarts", "0", "--"]
    return subprocess.run(
        [*launcher, sys.executable, program, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def start(directory: Path, ranks: int, step: int, cut: str, before: int) -> None:
    done = run(ranks, RANK, directory, step, cut, before)
    # A rank that has done its work may still be aborted by torch's Gloo thread.
    there = [(directory / f"done.{step}.{rank}").exists() for rank in range(ranks)]
    assert all(there), done.stdout


def test_a_model_of_tp_and_fsdp2_goes_on_with_other_ranks_and_other_cuts(gloo, tmp_path):
    start(tmp_path, 3, 0, "fsdp", 0)
    start(tmp_path, 4, 10, "tp+fsdp", 3)
    start(tmp_path, 1, 20, "whole", 4)
    start(tmp_path, 2, 30, "fsdp", 1)


def test_as_many_ranks_go_on_with_other_cuts(gloo, tmp_path):
    start(tmp_path, 2, 0, "fsdp", 0)
    start(tmp_path, 2, 10, "tp", 2)
    start(tmp_path, 2, 20, "whole", 2)
    start(tmp_path, 2, 30, "fsdp", 2)


def checkpointer(directory: Path, **options):
    return meshstage.Checkpointer(
        job="kinds", directory=directory, vault_directory=directory, rank=0, world_size=1, **options
    )


def test_kinds_that_there_are_not_are_refused_by_name(tmp_path):
    with pytest.raises(InvalidArgument, match="'loader' is 'own'.*'per rank'"):
        checkpointer(tmp_path, any_world={"loader": "own"})
    with pytest.raises(TypeError, match="any_world: 'loader': None"):
        checkpointer(tmp_path, any_world={"loader": None})
    with pytest.raises(TypeError, match="any_world is None"):
        checkpointer(tmp_path, any_world=None)


SUMMED = """
import sys
import meshstage
state = {"counts": {"seen.tokens": 5, "0": 1}, "loader": {"order": [ord("a")], "epoch": 0}}
with meshstage.Checkpointer(
    job="keys", directory=sys.argv[1], vault_directory=sys.argv[1],
    any_world={"counts": "first", "counts.seen.tokens": "summed", "loader": "per rank", "loader.epoch": "same"},
) as ckpt:
    before = ckpt.recover(state).old_world_size
    if before:
        assert state["counts"] == {"seen.tokens": 10 if ckpt.rank == 0 else 0, "0": 2}, state
        assert state["loader"]["order"] == [[7], [8], [ord("a")]][ckpt.rank], state
        assert state["loader"]["epoch"] == 4, state
    else:
        state["counts"]["0"] = 2 + ckpt.rank
        state["loader"] = {"order": [7 + ckpt.rank], "epoch": 4}
        assert ckpt.stage(state, 1).outcome(60) == "complete"
print("old world:", before)
"""


def test_the_longest_path_names_the_kind_and_keys_may_have_dots(tmp_path):
    program = tmp_path / "summed.py"
    program.write_text(SUMMED)
    for ranks, before in ((2, 0), (3, 2)):
        done = run(ranks, program, tmp_path)
        assert done.returncode == 0 and done.stdout.count(f"old world: {before}") == ranks, done.stdout


UNPLACED = """
import gc
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
import meshstage
import meshstage.torch
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # each process by itself
mesh = init_device_mesh("cpu", (1,))
cut = DTensor.from_local(torch.ones(3, 2), mesh, [Shard(0)], run_check=False, shape=torch.Size((4, 2)), stride=(2, 1))
with meshstage.Checkpointer(job="cut", directory=sys.argv[1], vault_directory=sys.argv[1], any_world=True) as ckpt:
    try:
        ckpt.recover({"w": cut})
        print("recovered", flush=True)  # torch's Gloo thread may abort a process that ends
        assert ckpt.stage({"w": cut}, 1).outcome(60) == "complete"
    except meshstage.errors.StructureMismatch as error:
        print("refused:", error, flush=True)
del cut
gc.collect()
dist.destroy_process_group()
"""


def test_a_dtensor_that_its_owner_has_cut_otherwise_is_refused_by_name(gloo, tmp_path):
    program = tmp_path / "cut.py"
    program.write_text(UNPLACED)
    for ranks, said in ((1, "recovered"), (2, "refused: structure mismatch: ")):
        done = run(ranks, program, tmp_path)
        assert done.stdout.count(said) == ranks, done.stdout
    assert "w: " in done.stdout and "a DTensor (Shard) of which is not known" in done.stdout


SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards
import meshstage
import meshstage.torch
dist.init_process_group("gloo")
rank, ranks, step, rows = dist.get_rank(), dist.get_world_size(), int(sys.argv[2]), 7
# The first rank has no shard if there are others, and the last has two.
cuts = [0, 0, 5, 6, 7] if ranks == 3 else [0, 4, 7] if ranks == 1 else [0, 2, 5, 7]
mine = [(a, b) for i, (a, b) in enumerate(zip(cuts, cuts[1:])) if min(i, ranks - 1) == rank and a < b]
whole = torch.arange(rows * 2.0).reshape(rows, 2) + 100 * step
shards = [Shard.from_tensor_and_offsets(torch.zeros(b - a, 2), [a, 0], rank) for a, b in mine]
state = {"w": init_from_local_shards(shards, rows, 2), "all": torch.zeros(2)}
with meshstage.Checkpointer(job="sharded", directory=sys.argv[1], vault_directory=sys.argv[1], any_world=True) as ckpt:
    assert ckpt.recover(state).step == step
    for shard, (a, b) in zip(shards, mine, strict=True):
        assert step == 0 or torch.equal(shard.tensor, whole[a:b]), (shard, whole)
        shard.tensor.copy_(whole[a:b] + 100)
    assert ckpt.stage(state, step + 1).outcome(60) == "complete"
print("recovered", step, flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def test_sharded_tensors_go_on_with_other_ranks_and_other_cuts(gloo, tmp_path):
    program = tmp_path / "sharded.py"
    program.write_text(SHARDED)
    for step, ranks in enumerate((2, 3, 1, 2)):
        done = run(ranks, program, tmp_path, step)
        assert done.stdout.count(f"recovered {step}") == ranks, done.stdout


@pytest.mark.parametrize("path", ["loadr", "loader.epochs", "list.2", "counts.seen"])
def test_a_path_that_no_state_has_is_refused_by_name(tmp_path, path):
    state = {"loader": {"epoch": 0}, "list": [1, 2], "counts": {"seen.tokens": 3}}
    named = {path: "first", "loader": "same", "list.1": "first", "counts.seen.tokens": "summed"}
    for _ in range(2):  # a first start, and one that has something to recover
        with checkpointer(tmp_path, any_world=named) as ckpt:
            with pytest.raises(InvalidArgument, match=f"any_world names '{path}'") as caught:
                ckpt.recover(state)
            ckpt.close()
        assert caught.value.path == path
    del named[path]
    with checkpointer(tmp_path, any_world={**named, "loader": "per rank", "loader.x": "same"}) as ckpt:
        assert ckpt.recover(state).step == 0  # another rank's loader may have an x


NAMED = """
import sys
import meshstage
lines = []
ranks = int(sys.argv[2])
with meshstage.Checkpointer(
    job="named", directory=sys.argv[1], vault_directory=sys.argv[1],
    any_world={"here": "per rank"}, log=lambda warning, text: lines.append((warning, text)),
) as ckpt:
    state = {"w": bytearray(8)}
    if ranks == 2 and ckpt.rank == 1:
        state["here"] = 7
    got = ckpt.recover(state)
    assert (got.old_world_size == 2) == (ranks == 1)
    if ranks == 2:
        assert ckpt.stage(state, 1).outcome(60) == "complete"
warned = [text for warning, text in lines if warning and "any_world names 'here'" in text]
assert len(warned) == (ranks == 1), lines
print("went on")
"""


def test_a_path_that_one_rank_has_is_taken_and_one_that_the_old_job_may_have_had_is_warned_of(tmp_path):
    program = tmp_path / "named.py"
    program.write_text(NAMED)
    for ranks in (2, 1):
        done = run(ranks, program, tmp_path, ranks)
        assert done.returncode == 0 and done.stdout.count("went on") == ranks, done.stdout


KEPT = """
import sys
import meshstage
from meshstage.errors import RejoinNeeded
vaults, step, before, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "last"
state = {"w": bytearray(8), "mine": -1}
ckpt = meshstage.Checkpointer(
    job="kept", vault_directory=vaults, persist_every=0, any_world={"mine": "per rank"}
)
got = ckpt.recover(state)
assert (got.step, got.old_world_size) == (step, before), got
assert step == 0 or bytes(state["w"]) == b"weights%d" % step, state
assert state["mine"] == (ckpt.rank if ckpt.rank < before else -1), state
state["w"][:], state["mine"] = b"weights%d" % (step + 1), ckpt.rank
assert ckpt.stage(state, step + 1).outcome(60) == "complete"
if last:
    ckpt.finish()
else:
    try:
        ckpt.barrier()
    except RejoinNeeded:
        pass  # a rank has passed the barrier and left: so all ranks have the step
    ckpt.close()
print("went on", flush=True)
"""


def test_without_files_a_job_goes_on_with_other_ranks_from_memory_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    vaults = tmp_path / "vaults"
    vaults.mkdir(mode=0o700)
    program = tmp_path / "kept.py"
    program.write_text(KEPT)
    starts = [2, 3, 1, 4]
    for step, (ranks, before) in enumerate(zip(starts, [0, *starts], strict=False)):
        last = "last" if step + 1 == len(starts) else "more"
        done = run(ranks, program, vaults, step, before, last)
        assert done.returncode == 0 and done.stdout.count("went on") == ranks, done.stdout
        assert not list((tmp_path / "state").rglob("*.safetensors"))  # the ranks' store is there
    assert not list(vaults.iterdir())
