"""The examples with torch's DDP, FSDP2 and HSDP: a rank is killed, and the bits are an undisturbed run's."""

import contextlib
import os
import re
import select
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
KILL_AT = 60  # steps, of which rank 0 prints every tenth

LAUNCHERS = {
    "meshstage run": ["-m", "meshstage", "run", "--restart", "all", "-n"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "3", "--nproc-per-node"],
}


@dataclass
class Example:
    """A program, its ranks, its steps, and the words after DIRECTORY and STEPS."""

    program: Path
    ranks: int = 2
    steps: int = 300  # so many that the job is far from its end when the kill comes
    words: tuple[str, ...] = ()


EXAMPLE = {
    "ddp": Example(EXAMPLES / "ddp.py", steps=1500),
    "fsdp2": Example(EXAMPLES / "fsdp2.py"),
    "hsdp": Example(EXAMPLES / "fsdp2.py", 4, words=("2",)),
}


@dataclass
class Process:
    """A process of a job: what it has in its environment says so, whoever its parent is by now."""

    pid: int
    words: list[bytes]
    variables: list[bytes]


def processes(job: str) -> list[Process]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if os.fsencode(f"MESHSTAGE_JOB={job}") in variables:
            found.append(Process(int(folder.name), words, variables))
    return found


def rank_1(job: str, program: Path) -> int:
    for process in processes(job):
        by_launcher = process.words[1:2] == [b"-m"]  # its words have the program, too
        if not by_launcher and os.fsencode(program) in process.words and b"RANK=1" in process.variables:
            return process.pid
    raise AssertionError("rank 1 is not there")


def end(launcher: subprocess.Popen, job: str) -> None:
    """Kills the launcher and its ranks, which may hold its standard output, too."""
    launcher.send_signal(signal.SIGSTOP)  # from now on it starts no rank
    for process in processes(job):
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(process.pid)
            try:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [])  # until it has ended
            finally:
                os.close(handle)
    launcher.kill()
    for left in Path("/dev/shm").glob(f"meshstage-*-{job}-*"):  # of a run that failed
        left.unlink()


def start(launcher: str, example: Example, job: str, directory: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, *LAUNCHERS[launcher], str(example.ranks)]
    if launcher == "meshstage run":
        command += ["--", sys.executable]
    command += [str(example.program), str(directory), *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={
            **os.environ, "MESHSTAGE_STORE": f"file:{directory}/store", "MESHSTAGE_JOB": job,
            "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
    )  # fmt: skip


def run(launcher: str, example: Example, directory: Path, kill_at: int | None) -> list[str]:
    directory.mkdir()
    job = f"example-{os.getpid()}-{directory.name}"
    process = start(launcher, example, job, directory, str(example.steps), *example.words)
    watchdog = threading.Timer(300, end, [process, job])
    watchdog.start()
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if kill_at is not None and f"step {kill_at}:" in line:
                os.kill(rank_1(job, example.program), signal.SIGKILL)
                kill_at = None
        assert process.wait() == 0, "".join(lines)
    finally:
        watchdog.cancel()
        watchdog.join()
        end(process, job)
        process.wait()
        process.stdout.close()
    text = "".join(lines)
    assert kill_at is None, text
    assert text.count("step 0:") == 1, text  # it went on from memory
    # Once each: torch's Gloo thread may abort a rank that is exiting, after all is done. The
    # launcher starts the ranks anew then, and they print it again.
    return sorted(set(re.findall(r"rank \d: [0-9a-f]{64}", text)))


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


def test_the_example_goes_on_with_another_number_of_ranks(tmp_path):
    job = f"example-{os.getpid()}-any-world"
    printed = []
    for ranks, count in ((2, 30), (3, 60)):
        launcher = start("meshstage run", Example(EXAMPLES / "fsdp2.py", ranks), job, tmp_path, str(count))
        try:
            printed.append(launcher.communicate(timeout=200)[0])
        finally:
            end(launcher, job)
            launcher.wait()
        assert launcher.returncode == 0, printed[-1]
    assert "step 0:" in printed[0] and "step 20:" in printed[0], printed[0]
    assert re.findall(r"step (\d+):", printed[1]) == ["30", "40", "50"], printed[1]
    assert len(set(re.findall(r"rank (\d): [0-9a-f]{64}", printed[1]))) == 3, printed[1]


SLOW = """
import os, time
print("rank", os.environ["RANK"], "runs", flush=True)
time.sleep(60)
print("it ended by itself", flush=True)
"""


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_end_of_a_job_is_that_of_its_ranks(tmp_path, launcher):
    program, job = tmp_path / "slow.py", f"example-{os.getpid()}-slow"
    program.write_text(SLOW)
    process = start(launcher, Example(program), job, tmp_path)
    with process.stdout:
        runs = set()
        for line in process.stdout:
            if line.endswith(" runs\n"):
                runs.add(line)
            if len(runs) == 2:
                break
        end(process, job)
        process.wait()
        assert len(runs) == 2 and "by itself" not in process.stdout.read()
    assert not processes(job)
