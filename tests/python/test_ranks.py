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
