"""meshstage.dcp.Writer and Reader in torch.distributed.checkpoint's save, async_save and load."""

import json
import warnings

import pytest

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")

import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
from dcp_refusal import refusal  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import Replicate, Shard, distribute_tensor  # noqa: E402

from meshstage._dcp_files import METADATA  # noqa: E402
from meshstage.dcp import Reader, Writer  # noqa: E402


pytestmark = pytest.mark.usefixtures("quiet")


def state_of(base):
    whole = torch.arange(12.0).reshape(3, 4) + base
    return {
        "a": whole, "t": whole.t(), "half": torch.full((5,), base, dtype=torch.bfloat16),
        "z": torch.complex(whole, -whole).conj(), "flag": torch.tensor(True), "none": torch.empty(0, 3),
        "nested": {"list": [torch.ones(2) * base, base], "lr": 0.1, "name": "x"},
    }  # fmt: skip


def save(folder, state):
    dcp.save(state, storage_writer=Writer(folder), no_dist=True)


def load(folder, state, **options):
    dcp.load(state, storage_reader=Reader(folder, **options), no_dist=True)
    return state


def same(got, want):
    assert got["nested"]["list"][1] == want["nested"]["list"][1] and got["nested"]["name"] == "x"
    assert torch.equal(got["nested"]["list"][0], want["nested"]["list"][0])
    for name in ("a", "t", "half", "z", "flag", "none"):
        assert torch.equal(got[name], want[name]), name


def test_a_state_comes_back(tmp_path):
    save(tmp_path / "c", state_of(7))
    same(load(tmp_path / "c", state_of(0)), state_of(7))


def test_a_tensor_without_memory_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointException, match="'a' is a Tensor with elements and no memory"):
        save(tmp_path, {"a": torch._efficientzerotensor((3,))})
    assert not list(tmp_path.iterdir())


def test_the_data_is_a_file_that_safetensors_reads(tmp_path):
    load_file = pytest.importorskip("safetensors.torch").load_file
    save(tmp_path, state_of(7))
    (data,) = tmp_path.glob("data-*.safetensors")
    got = load_file(data)
    assert torch.equal(got["a"], state_of(7)["a"]) and torch.equal(got["half"], state_of(7)["half"])


def test_a_save_replaces_the_one_before_and_its_files(tmp_path):
    for base in (1, 2):
        save(tmp_path, state_of(base))
        same(load(tmp_path, state_of(0)), state_of(base))
        assert sorted(p.name[:5] for p in tmp_path.iterdir()) == ["data-", "metad"]


def test_a_save_into_a_folder_of_pytorchs_writer_is_the_only_one_that_loads(tmp_path):
    dcp.save(state_of(1), checkpoint_id=tmp_path, no_dist=True)
    save(tmp_path, state_of(2))
    assert not (tmp_path / ".metadata").exists()
    same(load(tmp_path, state_of(0)), state_of(2))


def test_a_save_that_is_cut_off_leaves_the_one_before(tmp_path, monkeypatch):
    save(tmp_path, state_of(1))

    def cut(*_):
        raise OSError("no power")

    for place in ("meshstage.dcp.publish", "meshstage.dcp.write_synced"):
        with monkeypatch.context() as patch:
            patch.setattr(place, cut)
            with pytest.raises(CheckpointException, match="no power"):
                save(tmp_path, state_of(2))
        same(load(tmp_path, state_of(0)), state_of(1))
    with monkeypatch.context() as patch:
        patch.setattr("meshstage.dcp.publish", cut)
        with pytest.raises(CheckpointException):
            save(tmp_path / "first", state_of(2))
    refusal(lambda: load(tmp_path / "first", state_of(0)), "no save was completed")


@pytest.mark.parametrize("what", ["data", "metadata", "cut", "gone", "version", "outside"])
def test_bytes_that_were_not_written_are_refused(tmp_path, what):
    save(tmp_path, state_of(1))
    (data,) = tmp_path.glob("data-*.safetensors")
    metadata = tmp_path / METADATA
    text = bytearray(metadata.read_bytes())
    if what == "data":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif what == "cut":
        data.write_bytes(data.read_bytes()[:-1])
    elif what == "gone":
        data.unlink()
    elif what == "metadata":
        text[-30] ^= 1
        metadata.write_bytes(text)
    else:
        first, body = text.split(b"\n", 1)
        head = json.loads(first)
        if what == "version":
            head["version"] = 2
        else:
            import hashlib

            body = body.replace(data.name.encode(), b"../" + data.name[3:].encode()).rstrip()
            head["sha256"] = hashlib.sha256(body).hexdigest()
        metadata.write_bytes(json.dumps(head).encode() + b"\n" + body)
    # torch says the class of an error of read_data, and of one of read_metadata only the words.
    words = {"metadata": "has changed", "version": "this reads", "outside": "is no data file of the folder"}
    refusal(lambda: load(tmp_path, state_of(0)), words.get(what, "CorruptData"))


class Ran:
    def __reduce__(self):
        return (exec, ("raise SystemError('code of a checkpoint has run')",))


def test_an_object_that_runs_code_is_not_loaded(tmp_path):
    save(tmp_path, {"w": torch.ones(2), "evil": Ran()})
    with pytest.raises(CheckpointException, match="trusted=True"):
        load(tmp_path, {"w": torch.zeros(2), "evil": None})
    with pytest.raises(CheckpointException, match="has run"):
        load(tmp_path, {"w": torch.zeros(2), "evil": None}, trusted=True)


def test_it_says_what_is_missing(tmp_path):
    refusal(lambda: load(tmp_path / "no", state_of(0)), "does not exist")
    dcp.save({"w": torch.ones(2)}, checkpoint_id=tmp_path / "theirs", no_dist=True)
    refusal(lambda: load(tmp_path / "theirs", {"w": torch.ones(2)}), "PyTorch's own writer")


def test_async_save_with_our_stager(tmp_path):
    from meshstage.torch import Stager

    stager, state = Stager(), state_of(3)
    upload = dcp.async_save(state, storage_writer=Writer(tmp_path), async_stager=stager, no_dist=True)
    state["a"].zero_()
    (upload if hasattr(upload, "result") else upload.upload_completion).result(60)
    same(load(tmp_path, state_of(0)), state_of(3))
    stager.close()


def rank_main(rank, world_size, folder, body):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store{world_size}", rank=rank, world_size=world_size
    )
    body(rank, world_size, folder)
    dist.destroy_process_group()


def sharded(world_size, base):
    mesh = init_device_mesh("cpu", (world_size,))
    rows = torch.arange(30.0).reshape(10, 3) + base  # 10 rows: uneven for 3 and 4
    return {
        "rows": distribute_tensor(rows, mesh, [Shard(0)]),
        "columns": distribute_tensor(rows, mesh, [Shard(1)]),
        "all": distribute_tensor(rows, mesh, [Replicate()]),
        "plain": rows.clone(), "epoch": int(base),
    }  # fmt: skip


def save_sharded(rank, world_size, folder):
    dcp.save(sharded(world_size, 5), storage_writer=Writer(f"{folder}/c"))


def load_sharded(rank, world_size, folder):
    state, want = sharded(world_size, 0), sharded(world_size, 5)
    dcp.load(state, storage_reader=Reader(f"{folder}/c"))
    for name in ("rows", "columns", "all"):
        assert torch.equal(state[name].to_local(), want[name].to_local()), name
    assert torch.equal(state["plain"], want["plain"]) and state["epoch"] == 5


def test_another_number_of_ranks_loads_it(tmp_path):
    mp.spawn(rank_main, (3, str(tmp_path), save_sharded), 3)
    files = list((tmp_path / "c").glob("data-*"))
    assert len(files) == 3
    # What all ranks have is there once.
    assert sum(f.stat().st_size for f in files) < 4 * 120 + 3 * 1024 + 2000
    mp.spawn(rank_main, (2, str(tmp_path), load_sharded), 2)
    state = {"rows": torch.zeros(10, 3), "plain": torch.zeros(10, 3)}
    load(tmp_path / "c", state)  # without process groups
    assert torch.equal(state["rows"], state["plain"]) and state["rows"][0, 0] == 5
