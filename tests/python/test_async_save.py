"""meshstage.torch.Stager in torch.distributed.checkpoint's async_save."""

import os
import threading
from concurrent.futures import Future

import pytest

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")

from torch.distributed.checkpoint.staging import AsyncStager  # noqa: E402

from meshstage.errors import InvalidArgument, InvalidState  # noqa: E402
from meshstage.torch import Stager  # noqa: E402


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def stager(request):
    made = Stager(async_staging=request.param)
    yield made
    made.close()


pytestmark = pytest.mark.usefixtures("quiet")


def done(staged):
    return staged.result(60) if isinstance(staged, Future) else staged


def test_it_has_the_protocol(stager):
    assert isinstance(stager, AsyncStager)
    assert stager.should_synchronize_after_execute is True


def test_a_step_is_saved_as_it_was_at_the_call(stager, tmp_path):
    state = {"w": torch.arange(5.0), "n": {"b": torch.ones(2)}, "step": 3}
    response = dcp.async_save(state, checkpoint_id=tmp_path / "c", async_stager=stager, no_dist=True)
    if isinstance(response, Future):
        upload = response
    else:
        response.staging_completion.result(60)
        upload = response.upload_completion
    state["w"].zero_()
    upload.result(60)
    loaded = {"w": torch.zeros(5), "n": {"b": torch.zeros(2)}, "step": 0}
    dcp.load(loaded, checkpoint_id=tmp_path / "c", no_dist=True)
    assert torch.equal(loaded["w"], torch.arange(5.0)) and loaded["step"] == 3


def test_memory_that_an_upload_reads_is_never_staged_over(stager):
    source = torch.zeros(1000)
    kept = []
    for i in range(5):
        source.fill_(i)
        kept.append(done(stager.stage({"w": source})))
    assert [int(staged["w"][0]) for staged in kept] == [0, 1, 2, 3, 4]


def test_memory_is_used_again_when_the_upload_is_over(stager):
    source = torch.zeros(1000)
    addresses = set()
    for _ in range(5):
        staged = done(stager.stage({"w": source}))
        addresses.add(staged["w"].data_ptr())
        del staged
        stager.synchronize_staging()
    assert len(addresses) <= 2


def test_what_is_wrong_with_the_state_is_raised_by_stage(stager):
    with pytest.raises(InvalidArgument, match="a.b"):
        stager.stage({"a": {"b": torch.eye(2).to_sparse()}})
    assert torch.equal(done(stager.stage({"w": torch.ones(2)}))["w"], torch.ones(2))


def test_the_state_may_be_emptied_while_it_is_copied():
    stager = Stager(async_staging=True)
    for i in range(20):  # the slow walk and the plan
        state = {"w": torch.full((100_000,), float(i)), "n": [torch.ones(3)]}
        future = stager.stage(state)
        state.clear()
        assert isinstance(future, Future)
        assert torch.equal(future.result(60)["w"], torch.full((100_000,), float(i)))
    same = {"w": torch.zeros(100_000)}
    for i in range(5):
        same["w"].fill_(i)
        state = dict(same)
        future = stager.stage(state)
        state.clear()
        assert future.result(60)["w"][0] == i
    stager.close()


def test_close_ends_its_thread_and_refuses_what_comes_after():
    stager = Stager(async_staging=True)
    stager.stage({"w": torch.ones(3)})
    stager.close()
    stager.close()
    assert not any(t.name.startswith("meshstage-stager") for t in threading.enumerate())
    with pytest.raises(InvalidState):
        stager.stage({})


@pytest.mark.parametrize("share_memory", [False, True])
def test_the_process_executor_gets_the_step(tmp_path, share_memory):
    import subprocess
    import sys
    import textwrap

    program = tmp_path / "save.py"  # the executor's process imports the main program
    program.write_text(textwrap.dedent(f"""
        import sys
        import torch
        import torch.distributed as dist
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
        from meshstage.torch import Stager

        def main():
            dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
            stager = Stager(async_staging=True, share_memory={share_memory})
            state = {{"w": torch.arange(1000.0), "tie": None}}
            state["tie"] = state["w"][10:]
            for i in range(2):
                state["w"].fill_(i)
                response = dcp.async_save(
                    state, checkpoint_id="{tmp_path}/c%d" % i, async_stager=stager,
                    async_checkpointer_type=AsyncCheckpointerType.PROCESS)
                response.staging_completion.result(60)
                state["w"].fill_(-1)
                response.upload_completion.result(100)
                loaded = {{"w": torch.zeros(1000), "tie": torch.zeros(990)}}
                dcp.load(loaded, checkpoint_id="{tmp_path}/c%d" % i)
                assert (loaded["w"] == i).all() and (loaded["tie"] == i).all()
            stager.close()
            dist.destroy_process_group()

        if __name__ == "__main__":
            main()
    """))
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=200,
        env={**os.environ, "MASTER_ADDR": "localhost"},  # not every host's own name has an address
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
