"""Real processes: a rank that is killed comes back, and the bits are those of an undisturbed run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numpy")

STEPS = 40
HERE = Path(__file__).parent


def run(program: str, directory: Path, *arguments: str) -> list[str]:
    directory.mkdir()
    command = [
        sys.executable, "-m", "meshstage", "run", "-n", "2", "--job", "ranks", "--",
        sys.executable, str(HERE / program), str(directory), str(STEPS), *arguments,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240,
        env={**os.environ, "MESHSTAGE_STORE": f"file:{directory}/store"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [(directory / f"result.{rank}").read_text() for rank in (0, 1)]


@pytest.mark.parametrize("program", ["rank.py", "torch_rank.py"])
def test_a_killed_rank_comes_back_with_the_same_bits(tmp_path, program):
    if program == "torch_rank.py":
        pytest.importorskip("torch")
    undisturbed = run(program, tmp_path / "undisturbed")
    assert undisturbed[0] == undisturbed[1]
    killed = run(program, tmp_path / "killed", "23")
    assert (tmp_path / "killed" / "died").exists()
    assert killed == undisturbed


CONNECTED = """
import sys
import numpy as np
import meshstage
directory, rank = sys.argv[1], int(sys.argv[2])
with meshstage.Checkpointer(
    job="connections", directory=directory, vault_directory=directory, store=f"file:{directory}/store",
    rank=rank, world_size=2, connections=3 - rank, deadline=20.0,
) as ckpt:
    state = {"a": np.full(100_000, float(rank))}
    ckpt.recover(state)
    assert ckpt.stage(state, 1).outcome() == "complete"
    print(ckpt.stats()["connections"])
"""


def test_of_two_ranks_the_one_that_wants_fewer_connections_counts(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", CONNECTED, str(tmp_path), str(rank)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for rank in ranks:
        out, errors = rank.communicate(timeout=90)
        assert rank.returncode == 0, errors
        assert out == "2\n"  # 3 and 2


def test_a_number_of_connections_that_is_of_no_use_is_refused(tmp_path):
    import meshstage

    with pytest.raises(meshstage.InvalidArgument, match="connections is 17; the maximum is 16"):
        meshstage.Checkpointer(directory=tmp_path, rank=0, world_size=1, connections=17)
    with pytest.raises(TypeError):
        meshstage.Checkpointer(directory=tmp_path, rank=0, world_size=1, connections=-1)
    with meshstage.Checkpointer(directory=tmp_path, vault_directory=tmp_path, rank=0, world_size=1) as ckpt:
        assert ckpt.stats()["connections"] == 0  # to nobody
