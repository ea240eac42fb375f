"""The examples with torch, killed 200 times in one job under torchrun: pytest -m slow (an hour each)."""

import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest

pytest.importorskip("torch.distributed.run")

EXAMPLES = Path(__file__).parents[2] / "tools" / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("program", ["ddp.py", "fsdp2.py"])
def test_two_hundred_kills_change_no_bits(program):
    command = [
        sys.executable, str(EXAMPLES / "random_kills"), str(EXAMPLES / program), "--launcher", "torchrun",
        "--kills", "200", "--pause", "4", "--limit", "3600",
    ]  # fmt: skip
    beside = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # torchrun, and the program's python3
    environment = {**os.environ, "PATH": beside, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with subprocess.Popen(command, stdout=PIPE, stderr=STDOUT, text=True, env=environment) as kills:
        try:
            printed, _ = kills.communicate(timeout=7200)
        except subprocess.TimeoutExpired:
            kills.terminate()  # it ends its job's ranks before it ends
            printed, _ = kills.communicate(timeout=120)
    assert kills.returncode == 0, printed
    assert "200 kills" in printed and "the same bits" in printed
