"""The examples with torch's DDP, FSDP2 and HSDP: a rank is killed, and the bits are an undisturbed run's."""

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this torch has no Gloo", allow_module_level=True)

EXAMPLES = Path(__file__).parents[2] / "tools" / "examples"
STEPS = 120
KILL_AT = 60  # steps, of which rank 0 prints every tenth

LAUNCHERS = {
    "meshstage run": ["-m", "meshstage", "run", "--restart", "all", "-n"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "3", "--nproc-per-node"],
}


@dataclass
class Example:
    """A program, its ranks, and the words after DIRECTORY and STEPS."""

    program: Path
    ranks: int = 2
    words: tuple[str, ...] = ()


EXAMPLE = {
    "ddp": Example(EXAMPLES / "ddp.py"),
    "fsdp2": Example(EXAMPLES / "fsdp2.py"),
    "hsdp": Example(EXAMPLES / "fsdp2.py", 4, ("2",)),
}


def descendants(pid: int) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # it has ended
        if parent == pid:
            found += [int(process.name), *descendants(int(process.name))]
    return found


def rank_1(launcher: int, program: Path) -> int:
    for pid in descendants(launcher):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:2] != [b"-m"] and os.fsencode(program) in words and b"RANK=1" in variables:
            return pid
    raise AssertionError("rank 1 is not there")


def run(launcher: str, example: Example, directory: Path, kill_at: int | None) -> list[str]:
    directory.mkdir()
    job = f"example-{os.getpid()}-{directory.name}"
    command = [sys.executable, *LAUNCHERS[launcher], str(example.ranks)]
    if launcher == "meshstage run":
        command += ["--", sys.executable]
    command += [str(example.program), str(directory), str(STEPS), *example.words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={
            **os.environ, "MESHSTAGE_STORE": f"file:{directory}/store", "MESHSTAGE_JOB": job,
            "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
    )  # fmt: skip
    watchdog = threading.Timer(300, process.kill)
    watchdog.start()
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if kill_at is not None and f"step {kill_at}:" in line:
                os.kill(rank_1(process.pid, example.program), signal.SIGKILL)
                kill_at = None
        assert process.wait() == 0, "".join(lines)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        for left in Path("/dev/shm").glob(f"meshstage-*-{job}-*"):  # of a run that failed
            left.unlink()
    text = "".join(lines)
    assert kill_at is None, text
    assert text.count("step 0:") == 1, text  # it went on from memory
    return sorted(re.findall(r"rank \d: [0-9a-f]{64}", text))


@pytest.fixture(scope="module", params=EXAMPLE)
def example(request, tmp_path_factory):
    """An example, and what its ranks print when nobody dies."""
    example = EXAMPLE[request.param]
    undisturbed = run("meshstage run", example, tmp_path_factory.mktemp("example") / "undisturbed", None)
    digests = [line.split()[-1] for line in undisturbed]
    assert len(digests) == example.ranks and len(set(digests)) == 1
    return example, undisturbed


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_rank_changes_no_bits(tmp_path, example, launcher):
    example, undisturbed = example
    assert run(launcher, example, tmp_path / "killed", KILL_AT) == undisturbed
