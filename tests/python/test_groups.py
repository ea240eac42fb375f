"""States on torch's process groups, which end with a rank: the process ends with 75, or makes them anew."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this torch has no Gloo", allow_module_level=True)

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh  # noqa: E402
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor, Replicate  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

import meshstage  # noqa: E402
import meshstage.torch  # noqa: E402
from meshstage import errors  # noqa: E402
from meshstage.torch._groups import is_group_failure, user_of_groups  # noqa: E402


def layers():
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))


def sharded(model):
    fully_shard(model[1], mesh=init_device_mesh("cpu", (1,)))
    return model


def of(**parts) -> str:
    return meshstage.torch.state(**parts).user_of_groups()


def test_modules_on_groups_are_found_wherever_they_are(one_rank, quiet):
    assert of(model=layers(), seen=0) == ""
    ddp = DistributedDataParallel(layers())
    assert of(seen=0, model=ddp) == "'model' is a DistributedDataParallel"
    inner = torch.nn.ModuleDict({"head": ddp})
    assert of(model=torch.compile(inner)) == "'model._orig_mod.head' is a DistributedDataParallel"
    assert of(model=sharded(layers())) == "'model.1' is a module of fully_shard"
    fsdp = FullyShardedDataParallel(layers(), device_id=torch.device("cpu"))
    assert of(model=fsdp) == "'model' is a FullyShardedDataParallel"


def test_the_state_of_a_zero_redundancy_optimizer_is_staged(make, one_rank, quiet):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def build():
        torch.manual_seed(1)
        model = DistributedDataParallel(layers())
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.1)
        return model, optimizer, meshstage.torch.state(model=model, optimizer=optimizer)

    def train(model, optimizer):
        torch.manual_seed(2)
        for _ in range(3):
            model(torch.randn(4, 2)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach().clone() for p in model.parameters()]

    model, optimizer, state = build()
    ckpt = make()
    ckpt.recover(state)
    train(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.05
    assert ckpt.stage(state, 3).outcome(60) == "complete"
    wanted = train(model, optimizer)
    again = build()
    assert make().recover(again[2]).step == 3
    for one, other in zip(wanted, train(*again[:2]), strict=True):
        assert torch.equal(one, other)


def test_the_full_state_of_fsdp1_is_refused(make, one_rank, quiet):
    model = FullyShardedDataParallel(layers(), device_id=torch.device("cpu"))
    with pytest.raises(errors.InvalidArgument, match="FSDP1"):
        make().recover(meshstage.torch.state(model=model))


def test_tensors_on_groups_are_found_in_optimizers_and_containers(one_rank):
    model = sharded(layers())
    optimizer = torch.optim.AdamW(model.parameters())
    assert of(optimizer=optimizer) == "'optimizer.0.2' is a DTensor"
    weights = {"model": [model.state_dict()]}
    assert user_of_groups(weights) == "'model.0.1.weight' is a DTensor"
    assert user_of_groups({"model": layers().state_dict(), "optimizer": torch.optim.SGD([torch.ones(1)])}) == ""


def test_a_mesh_that_only_describes_has_no_groups(one_rank):
    mesh = DeviceMesh("cpu", [0], _init_backend=False, _rank=0)
    value = DTensor.from_local(torch.ones(2), mesh, [Replicate()], run_check=False)
    assert user_of_groups({"w": value}) == ""


def test_failures_of_groups_are_told_from_others():
    assert is_group_failure(dist.DistNetworkError("no answer"))
    assert is_group_failure(RuntimeError("[/src/gloo/transport/tcp/pair.cc:5] Connection closed by peer"))
    assert not is_group_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_group_failure(errors.InvalidState("gloo/ is ours here"))
    assert not is_group_failure(ValueError("gloo/"))


LOSSES = {
    "ours": lambda: errors.PeerLost("rank 1 is gone"),
    "gloo's": lambda: RuntimeError("[/src/gloo/transport/tcp/pair.cc:5] Connection closed by peer"),
}


@pytest.fixture
def lost(monkeypatch):
    """Once torch has reported a loss, so does the engine."""

    def throw(self):
        raise errors.PeerLost("rank 1 is gone")

    monkeypatch.setattr(meshstage.Checkpointer, "_throw_if_lost", throw)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_ends_a_process_with_ddp_and_its_vault_stays(make, one_rank, lost, loss):
    state = meshstage.torch.state(model=DistributedDataParallel(layers()))
    lines, cleaned = [], []
    with pytest.raises(SystemExit) as left, make(log=lambda *line: lines.append(line)) as ckpt:
        try:
            for step in ckpt.steps(state, 9):
                with step:
                    if step.number == 4:
                        raise LOSSES[loss]()
        finally:
            cleaned.append(True)
    assert left.value.code == 75 and cleaned
    said = [text for warning, text in lines if warning and "status 75" in text]
    assert len(said) == 1 and "'model' is a DistributedDataParallel" in said[0], lines
    with make() as ckpt:
        got = ckpt.recover(state)
        assert (got.step, got.source) == (4, "own memory")


@pytest.mark.parametrize("again", [False, True])
def test_an_error_of_torchs_groups_passes_if_every_rank_lives(make, one_rank, again):
    def state():
        return meshstage.torch.state(model=DistributedDataParallel(layers()))

    more = {"build": state} if again else {}
    with pytest.raises(RuntimeError, match="preamble.length"), make() as ckpt:
        ckpt._deadline = 1.0  # for so long a loss is waited for; the engine keeps its own
        for step in ckpt.steps(state(), 9, **more):
            with step:
                raise RuntimeError("[/src/gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 4 vs 8")


def test_without_groups_a_loss_is_survived_in_place_and_torchs_errors_pass(make):
    state = meshstage.torch.state(model=layers())
    losses = [LOSSES["ours"]()]
    with make() as ckpt:
        for step in ckpt.steps(state, 9):
            with step:
                assert step.state is state
                if step.number == 4 and losses:
                    raise losses.pop()
        assert step.number == 8 and not losses
    with pytest.raises(RuntimeError, match="pair.cc"), make() as ckpt:
        for step in ckpt.steps(state, 19):
            with step:
                raise LOSSES["gloo's"]()


@pytest.mark.parametrize("loss", LOSSES)
def test_with_build_the_step_is_recovered_into_a_new_state(make, one_rank, lost, loss):
    built, numbers = [], []

    def build():
        gc.collect()
        assert all(model() is None for model in built)  # there is room for one
        model = DistributedDataParallel(layers())
        built.append(weakref.ref(model))
        return meshstage.torch.state(model=model, seen=0)

    with make() as ckpt:
        for step in ckpt.steps(None, 9, stage_every=2, build=build):
            with step:
                numbers.append(step.number)
                assert step.state["model"] is built[-1]() and step.state["seen"] == step.number
                step.state["seen"] += 1
                if len(numbers) == 6:
                    raise LOSSES[loss]()
    assert numbers == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8] and len(built) == 2


STEPS = 40
RANK = Path(__file__).parent / "groups_rank.py"


def run(directory: Path, *words: str) -> tuple[list[str], list[int], str]:
    """What the two ranks' weights are, how many processes each rank had, and what was printed."""
    directory.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "meshstage", "run", "-n", "2", "--job", "ranks", "--",
         sys.executable, RANK, directory, str(STEPS), *words],
        env={**os.environ, "MESHSTAGE_STORE": f"file:{directory}/store", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    results = [(directory / f"result.{rank}").read_text() for rank in (0, 1)]
    starts = [len((directory / f"start.{rank}").read_text().split()) for rank in (0, 1)]
    return results, starts, done.stdout


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    results, starts, _ = run(tmp_path_factory.mktemp("groups") / "undisturbed")
    assert starts == [1, 1] and results[0] == results[1]
    return results


def test_a_survivor_with_ddp_ends_with_75_and_both_ranks_come_back(tmp_path, undisturbed):
    results, (survivor, _), printed = run(tmp_path / "killed", "23")
    assert results == undisturbed
    assert survivor == 2, printed
    assert "rank 0: exit code 75, which asks for a restart of all ranks" in printed, printed
    assert "rank 0 ends with status 75" in printed, printed


def test_with_build_a_survivor_goes_on_in_its_process(tmp_path, undisturbed):
    results, starts, printed = run(tmp_path / "killed", "23", "build")
    assert results == undisturbed
    assert starts == [1, 2], printed
