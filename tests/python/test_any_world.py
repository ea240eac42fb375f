"""Jobs that come back with another number of ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import meshstage
from meshstage.errors import InvalidArgument

RANK = Path(__file__).parent / "any_world_rank.py"


def start(directory: Path, ranks: int, step: int, cut: str) -> None:
    run = [sys.executable, "-m", "meshstage", "run", "-n", str(ranks), "--max-restarts", "0", "--"]
    done = subprocess.run(
        [*run, sys.executable, RANK, directory, str(step), cut],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    # A rank that has done its work may still be aborted by torch's Gloo thread.
    there = [(directory / f"done.{step}.{rank}").exists() for rank in range(ranks)]
    assert all(there), done.stdout


def test_a_model_of_tp_and_fsdp2_goes_on_with_other_ranks_and_other_cuts(tmp_path):
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no Gloo")
    start(tmp_path, 4, 0, "tp+fsdp")
    start(tmp_path, 3, 10, "fsdp")
    start(tmp_path, 1, 20, "whole")
    start(tmp_path, 2, 30, "fsdp")


def test_kinds_that_there_are_not_are_refused_by_name(tmp_path):
    with pytest.raises(InvalidArgument, match="'loader' is 'own'.*'per rank'"):
        meshstage.Checkpointer(
            job="kinds", directory=tmp_path, vault_directory=tmp_path, rank=0, world_size=1,
            any_world={"loader": "own"},
        )  # fmt: skip
