"""meshstage.torch.PGTransport and ReplicationStager between processes, over torch's Gloo."""

import datetime
import os
import unittest.mock

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402

from meshstage.errors import InvalidArgument, StructureMismatch  # noqa: E402
from meshstage.torch import PGTransport, ReplicationStager, _pg_transport  # noqa: E402

MINUTE = datetime.timedelta(minutes=1)
CPU = torch.device("cpu")


def rank_main(rank, world_size, store, body, *arguments):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=MINUTE
    )
    try:
        body(rank, *arguments)
    finally:
        dist.destroy_process_group()


def run(tmp_path, world_size, body, *arguments):
    mp.spawn(rank_main, (world_size, str(tmp_path / "store"), body, *arguments), world_size)


def state_of(rank):
    base = torch.arange(24.0).reshape(4, 6) + rank
    return {
        "base": base, "view": base[1:3, ::2], "tie": [base], "none": torch.empty(0), "n": rank,
        "half": torch.full((7,), rank, dtype=torch.bfloat16),
    }  # fmt: skip


def check(got, rank):
    want = state_of(rank)
    assert got["n"] == rank
    for name in ("base", "view", "half", "none"):
        assert torch.equal(got[name], want[name]) and got[name].stride() == want[name].stride()
    got["base"].fill_(-1)  # shared as at the sender
    assert (got["view"] == -1).all() and (got["tie"][0] == -1).all()


def several_receivers(rank):
    transport = PGTransport(dist.group.WORLD, MINUTE, CPU)
    if rank == 0:
        transport.send_checkpoint([1, 2], state_of(0))
    else:
        check(transport.recv_checkpoint(0), 0)


def test_a_state_goes_to_several_receivers(tmp_path):
    run(tmp_path, 3, several_receivers)


def in_place(rank):
    mine = state_of(rank)
    transport = PGTransport(dist.group.WORLD, MINUTE, CPU, lambda: mine)
    if rank == 0:
        return transport.send_checkpoint([1], state_of(0))
    addresses = mine["base"].data_ptr(), mine["half"].data_ptr()
    got = transport.recv_checkpoint(0)
    assert got["base"] is mine["base"] and got["view"] is mine["view"]
    assert (mine["base"].data_ptr(), mine["half"].data_ptr()) == addresses
    check(got, 0)


def test_a_state_is_received_in_place(tmp_path):
    run(tmp_path, 2, in_place)


def untied(rank):
    tied = torch.arange(5.0)
    if rank == 0:
        return PGTransport(dist.group.WORLD, MINUTE, CPU).send_checkpoint([1], [tied, tied])
    mine = [torch.zeros(5), torch.zeros(5)]
    PGTransport(dist.group.WORLD, MINUTE, CPU, lambda: mine).recv_checkpoint(0)
    assert torch.equal(mine[0], tied) and torch.equal(mine[1], tied)


def test_what_only_the_sender_shared_arrives_in_each(tmp_path):
    run(tmp_path, 2, untied)


def mismatch(rank):
    if rank == 0:
        transport = PGTransport(dist.group.WORLD, MINUTE, CPU)
        return transport.send_checkpoint([1], {"model": [torch.empty(0), torch.ones(0, 3)]})
    mine = {"model": [torch.empty(0), torch.ones(4)]}
    with pytest.raises(StructureMismatch, match="model.1"):
        PGTransport(dist.group.WORLD, MINUTE, CPU, lambda: mine).recv_checkpoint(0)
    assert torch.equal(mine["model"][1], torch.ones(4))


def test_another_shape_is_refused_by_path(tmp_path):
    run(tmp_path, 2, mismatch)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.eye(2).to_sparse(), "layout"),
        (lambda: torch.tensor([1j]).conj(), "conjugate"),
        (lambda: torch.empty(2, device="meta"), "no memory"),
        (lambda: torch._efficientzerotensor((3,)), "no memory"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
    ],
    ids=["sparse", "conjugate", "meta", "no memory", "nested"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tensor_that_bytes_do_not_give_back_is_refused_by_path(make, why):
    sent = unittest.mock.MagicMock()
    transport = PGTransport(sent, MINUTE, CPU)
    with pytest.raises(InvalidArgument, match=f"a.0.*{why}"):
        transport.send_checkpoint([1], {"a": [make()]})
    assert not sent.send.called


def silent_sender(rank, done):
    if rank == 1:
        transport = PGTransport(dist.group.WORLD, datetime.timedelta(seconds=1), CPU)
        with pytest.raises(RuntimeError, match="(?i)time"):
            transport.recv_checkpoint(0)
        open(done, "w").close()
    else:
        while not os.path.exists(done):
            pass


def test_the_timeout_is_kept(tmp_path):
    run(tmp_path, 2, silent_sender, str(tmp_path / "done"))


def replicate(rank, world_size, directory):
    stager = ReplicationStager(dist.group.WORLD, MINUTE, storage_dir=directory)
    source = (rank - world_size // 2) % world_size
    for _ in range(2):
        check(stager.stage(state_of(rank)), source)
    check(torch.load(stager._get_persisted_path(rank, source)), source)
    assert not [name for name in os.listdir(directory) if name.startswith(f"rank_{rank}_") and "tmp" in name]


@pytest.mark.parametrize("world_size", [2, 3])
def test_each_rank_gets_the_state_of_half_the_world_before(tmp_path, world_size):
    run(tmp_path, world_size, replicate, world_size, str(tmp_path / "replicas"))


def distributed_state(rank, world_size):
    """Of 8 rows each rank has its part; another rank of the ShardedTensor has two shards."""
    from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardMetadata
    from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata, TensorProperties
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor
    from torch.distributed.tensor import Shard as OnDim

    whole = torch.arange(24.0).reshape(8, 3)
    mesh = init_device_mesh("cpu", (world_size,))
    boxes = [((0, 0), (4, 3), 0), ((4, 0), (2, 3), 1), ((6, 0), (2, 3), 1)]
    described = [ShardMetadata(list(at), list(size), f"rank:{r}/cpu") for at, size, r in boxes]
    shards = [
        Shard(whole[m.shard_offsets[0] :][: m.shard_sizes[0]].clone(), m)
        for m in described
        if m.placement.rank() == rank
    ]
    sharded = ShardedTensor._init_from_local_shards_and_global_metadata(
        shards, ShardedTensorMetadata(described, whole.size(), TensorProperties(whole.dtype))
    )
    return {
        "d": distribute_tensor(whole, mesh, [OnDim(0)]),
        "same": distribute_tensor(whole, mesh, [Replicate()]),
        "s": sharded,
    }


def distributed(rank, world_size):
    whole, mine = torch.arange(24.0).reshape(8, 3), distributed_state(rank, world_size)
    other = 1 - rank
    got = ReplicationStager(dist.group.WORLD, MINUTE).stage(mine)
    # The other rank's part, which also says so: saved from here it goes to its own place.
    assert torch.equal(got["d"].to_local(), whole[4 * other :][:4])
    assert list(got["d"].device_mesh.get_coordinate()) == [other]
    assert torch.equal(got["same"].to_local(), whole)
    shards = got["s"].local_shards()
    assert len(shards) == other + 1  # as many as the other rank has
    for shard in shards:
        first = shard.metadata.shard_offsets[0]
        assert torch.equal(shard.tensor, whole[first:][: shard.metadata.shard_sizes[0]])
        assert shard.metadata.placement.rank() == rank
    ranks = [m.placement.rank() for m in got["s"].metadata().shards_metadata]
    assert ranks == [1, 0, 0]  # the two have changed places

    # In place: the same part of the same tensor, or a refusal that touches nothing.
    transport = PGTransport(dist.group.WORLD, MINUTE, CPU, lambda: mine)
    for name in ("d", "s"):
        if rank == 0:
            transport.send_checkpoint([1], {name: mine[name]})
        else:
            with pytest.raises(StructureMismatch, match=f"'{name}' is the part"):
                transport.recv_checkpoint(0)
            take_the_rest(mine["d"].to_local().untyped_storage().nbytes() if name == "d" else 48)
    with pytest.raises(StructureMismatch, match="plain tensor"):
        _pg_transport._same_part((), mine["d"], _pg_transport._Sent(whole).structure.leaves[0])
    assert torch.equal(mine["d"].to_local(), whole[4 * rank :][:4])


def take_the_rest(nbytes):
    """What a refusal has left on the way, so that the next message is the next state's."""
    rest = torch.empty(nbytes, dtype=torch.uint8)
    dist.group.WORLD.recv([rest], 0, _pg_transport._STORAGES).wait()


def test_distributed_tensors_arrive_as_the_senders_part(tmp_path):
    run(tmp_path, 2, distributed, 2)


def from_theirs(rank):
    from torch.distributed.checkpoint._pg_transport import PGTransport as Theirs

    state = {"a": torch.arange(6.0)[1:4], "none": torch.empty(0), "d": distributed_state(rank, 2), "n": 3}
    if rank == 0:
        return Theirs(dist.group.WORLD, MINUTE, CPU).send_checkpoint([1], state)
    got = PGTransport(dist.group.WORLD, MINUTE, CPU).recv_checkpoint(0)
    assert torch.equal(got["a"], state["a"]) and got["n"] == 3 and got["none"].numel() == 0
    assert torch.equal(got["d"]["d"].to_local(), torch.arange(12.0).reshape(4, 3))


def test_pytorchs_sender_is_understood(tmp_path):
    run(tmp_path, 2, from_theirs)
