"""Tensors on a GPU: staged behind torch's current stream, changed at once, recovered in place. Each test is skipped where
torch sees no GPU. The file, conftest.py and cuda_rank.py suffice, beside an installed package:

    python3 -m pytest -v -rs test_cuda.py
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)

import meshstage  # noqa: E402
import meshstage.torch  # noqa: E402
from meshstage import _meshstage  # noqa: E402
from meshstage.torch import StateDictStager, Stager  # noqa: E402

HERE = Path(__file__).parent
LARGE = 10_000_000  # elements: the copy takes milliseconds
SLEEP = 200_000_000  # cycles of a kernel that only waits: a tenth of a second


@pytest.fixture(autouse=True)
def finished():
    yield
    torch.cuda.synchronize()


@pytest.fixture
def vault():
    """A directory whose files can be page-locked: those of a disk cannot."""
    directory = tempfile.mkdtemp(prefix="meshstage-test-", dir="/dev/shm")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def make(tmp_path, vault):
    made = []

    def one():
        for old in made:
            old.close()
        made.append(
            meshstage.Checkpointer(
                job="cuda", directory=tmp_path, vault_directory=vault, rank=0, world_size=1,
                persist_every=0,
            )
        )  # fmt: skip
        return made[-1]

    yield one
    for old in made:
        old.close()


def slowly(tensor, value):
    """Fills the tensor on the current stream, behind a kernel that takes its time."""
    torch.cuda._sleep(SLEEP)
    tensor.fill_(value)


def complete(staging):
    assert staging.outcome(60) == "complete"


def test_the_module_and_the_driver_are_used():
    assert _meshstage.cuda_problem() is None


# Checkpointer.

def test_a_state_on_the_gpu_is_recovered_in_place(make):
    weight = torch.randn(1000, 1000, device="cuda")
    parts = weight[100:200, ::2]
    state = {"weight": weight, "parts": parts, "transposed": weight.t()}
    was, address = weight.clone(), weight.data_ptr()
    ckpt = make()
    ckpt.recover(state)
    staging = ckpt.stage(state, 1)
    assert not staging._inner.on_cpu and staging._inner.cuda_devices == [0]
    staging.before_update()
    weight.fill_(float("nan"))
    complete(staging)
    got = make().recover(state)
    assert (got.step, got.source) == (1, "own memory")
    assert torch.equal(weight, was) and torch.equal(parts, was[100:200, ::2])
    assert weight.data_ptr() == address


@pytest.mark.parametrize("side", [False, True], ids=["default stream", "side stream"])
def test_staging_comes_behind_the_current_stream_and_the_update_behind_staging(make, side):
    with torch.cuda.stream(torch.cuda.Stream() if side else torch.cuda.default_stream()):
        tensor = torch.zeros(LARGE, device="cuda")
        state = {"tensor": tensor}
        ckpt = make()
        ckpt.recover(state)
        for step in (1, 2, 3):
            slowly(tensor, step)
            staging = ckpt.stage(state, step)
            staging.before_update()
            tensor.fill_(-1)  # at once on the host, behind the copies on the device
            complete(staging)
            slowly(tensor, -2)  # what recover() comes behind
            got = ckpt.rejoin().recover(state)
            assert got.step == step
            assert (tensor == step).all(), tensor


def test_before_update_does_not_wait_for_the_gpu(make):
    tensor = torch.zeros(1000, device="cuda")
    ckpt = make()
    ckpt.recover({"tensor": tensor})
    complete(ckpt.stage({"tensor": tensor}, 1))  # page-locks
    torch.cuda.synchronize()
    torch.cuda._sleep(10 * SLEEP)
    staging = ckpt.stage({"tensor": tensor}, 2)
    staging.before_update()
    assert not torch.cuda.current_stream().query() and not staging._inner.staged_ready()
    complete(staging)


def test_slots_are_page_locked(make):
    state = {"tensor": torch.ones(LARGE, device="cuda")}
    ckpt = make()
    ckpt.recover(state)
    complete(ckpt.stage(state, 1))
    assert ckpt.stats()["page_locked_bytes"] >= 4 * LARGE


def test_a_mixed_state(make):
    numpy = pytest.importorskip("numpy")
    state = {
        "gpu": [torch.randn(n, device="cuda").to(torch.bfloat16) for n in (1, 7, 4097)],
        "cpu": torch.randn(10), "numpy": numpy.arange(5.0), "step": 3,
        "empty": torch.empty(0, device="cuda"),
    }  # fmt: skip
    gpu, cpu = [t.clone() for t in state["gpu"]], state["cpu"].clone()
    ckpt = make()
    ckpt.recover(state)
    staging = ckpt.stage(state, 1)
    assert staging._inner.on_cpu and staging._inner.cuda_devices == [0]
    staging.before_update()
    for tensor in (*state["gpu"], state["cpu"]):
        tensor.zero_()
    state["numpy"][:] = 0
    state["step"] = 9
    complete(staging)
    assert make().recover(state).step == 1
    assert all(torch.equal(a, b) for a, b in zip(state["gpu"], gpu, strict=True))
    assert torch.equal(state["cpu"], cpu) and state["numpy"].tolist() == [0, 1, 2, 3, 4]
    assert state["step"] == 3


def test_ten_thousand_small_tensors(make):
    state = {str(i): torch.full((256,), float(i), device="cuda") for i in range(10_000)}
    ckpt = make()
    ckpt.recover(state)
    staging = ckpt.stage(state, 1)
    staging.before_update()
    torch._foreach_zero_(list(state.values()))
    complete(staging)
    ckpt.rejoin().recover(state)
    assert torch.equal(torch.stack(list(state.values()))[:, 0].cpu(), torch.arange(10_000.0))


def test_a_stream_that_is_being_captured_is_refused(make):
    state = {"tensor": torch.ones(10, device="cuda")}
    ckpt = make()
    ckpt.recover(state)
    with pytest.raises(meshstage.InvalidState, match="captured"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            state["tensor"] += 1
            ckpt.stage(state, 1)
    complete(ckpt.stage(state, 2))


def test_two_ranks_on_one_gpu_and_a_kill(tmp_path, vault):
    def run(directory, *arguments):
        directory.mkdir()
        command = [
            sys.executable, "-m", "meshstage", "run", "-n", "2", "--job", "ranks", "--",
            sys.executable, str(HERE / "cuda_rank.py"), str(directory), "40", *arguments,
        ]  # fmt: skip
        environment = {
            **os.environ, "MESHSTAGE_STORE": f"file:{directory}/store",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "VAULT": vault,
        }  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return [(directory / f"result.{rank}").read_text() for rank in (0, 1)]

    undisturbed = run(tmp_path / "undisturbed")
    assert undisturbed[0].split()[0] == undisturbed[1].split()[0]
    killed = run(tmp_path / "killed", "23")
    assert (tmp_path / "killed" / "died").exists()
    assert killed == undisturbed


# StateDictStager and Stager.

@pytest.mark.parametrize("pin", [False, True], ids=["pageable", "pinned"])
@pytest.mark.parametrize("share", [False, True], ids=["private", "shared"])
def test_the_stager_copies_from_the_gpu(pin, share):
    stager = StateDictStager(pin_memory=pin, share_memory=share)
    base = torch.randn(64, 64, device="cuda")
    state = {"base": base, "view": base[3:9].t(), "cpu": torch.ones(3000), "n": 1}
    for _ in range(3):  # the second and third time by the plan
        base.add_(1)
        expected = base.clone()
        staged = stager.stage(state)
        base.zero_()
        assert staged["base"].device.type == "cpu" and torch.equal(staged["base"], expected.cpu())
        assert torch.equal(staged["view"], expected[3:9].t().cpu())
        assert staged["view"].stride() == state["view"].stride()
        assert staged["base"].untyped_storage()._cdata == staged["view"].untyped_storage()._cdata
        assert staged["base"].is_pinned() == pin and staged["cpu"].is_pinned() == pin
        assert staged["base"].is_shared() == share
        base.copy_(expected)
    assert stager._plans
    stager.close()


@pytest.mark.parametrize("side", [False, True], ids=["default stream", "side stream"])
def test_the_stager_comes_behind_the_current_stream(side):
    stager = StateDictStager(pin_memory=True)
    with torch.cuda.stream(torch.cuda.Stream() if side else torch.cuda.default_stream()):
        tensor = torch.zeros(1_000_000, device="cuda")
        for value in (1, 2, 3):
            slowly(tensor, value)
            assert (stager.stage([tensor])[0] == value).all()
    stager.close()


def test_a_stager_of_async_save_copies_from_the_gpu():
    stager = Stager(async_staging=True, pin_memory=True)
    tensor = torch.zeros(1_000_000, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        for value in (1, 2, 3):
            slowly(tensor, value)
            staged = stager.stage({"tensor": tensor}).result(60)
            tensor.fill_(-1)
            assert (staged["tensor"] == value).all()
    stager.close()


def test_a_storage_that_torch_uses_again_is_another_one():
    stager = StateDictStager()
    for value in range(5):  # the caching allocator gives the same memory each time
        tensor = torch.full((1000,), float(value), device="cuda")
        assert (stager.stage([tensor])[0] == value).all()
        del tensor
    stager.close()
