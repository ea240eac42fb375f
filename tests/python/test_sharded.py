"""ShardedTensors, by their shards: staged, and recovered by a Checkpointer in place."""

import pytest

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
theirs = pytest.importorskip("torch.distributed._shard.sharded_tensor")

import meshstage  # noqa: E402
import meshstage.torch  # noqa: E402
from meshstage.errors import InvalidArgument  # noqa: E402


def sharded(*tensors):
    """One below the other."""
    shards, rows = [], 0
    for tensor in tensors:
        shards.append(theirs.Shard.from_tensor_and_offsets(tensor, [rows, 0], 0))
        rows += len(tensor)
    return theirs.init_from_local_shards(shards, rows, tensors[0].shape[1])


def rows(first, count):
    return torch.arange(first * 3.0, (first + count) * 3.0).reshape(count, 3)


def test_a_sharded_tensor_is_staged_by_its_shards(one_rank):
    base = rows(0, 6)
    source = sharded(base[:4], base[4:])
    stager = meshstage.torch.StateDictStager()
    for _ in range(2):
        staged = stager.stage({"s": source, "base": base})
    assert type(staged["s"]) is theirs.ShardedTensor
    assert staged["s"].metadata() == source.metadata()
    assert [s.metadata for s in staged["s"].local_shards()] == [s.metadata for s in source.local_shards()]
    base.zero_()
    assert torch.equal(staged["base"], rows(0, 6))
    for shard, wanted in zip(staged["s"].local_shards(), (rows(0, 4), rows(4, 2)), strict=True):
        assert torch.equal(shard.tensor, wanted)
        storage = shard.tensor.untyped_storage()
        assert storage.data_ptr() == staged["base"].untyped_storage().data_ptr()
    assert len(stager._cached_storage_mapping) == 1


def test_a_shard_that_cannot_be_staged_is_refused_by_its_path(one_rank):
    source = sharded(rows(0, 1), rows(1, 1))
    source.local_shards()[1].tensor = rows(1, 1).to_sparse()
    with pytest.raises(InvalidArgument, match="the tensor at 'layer.1' has layout"):
        meshstage.torch.StateDictStager().stage({"layer": source})


def rank(directory, **options):
    return meshstage.Checkpointer(
        job="sharded", directory=directory, vault_directory=directory, rank=0, world_size=1, **options
    )


def test_a_sharded_tensor_comes_back_in_place(one_rank, tmp_path):
    source = sharded(rows(0, 4), rows(4, 2))
    with rank(tmp_path) as ckpt:
        ckpt.recover({"s": source})
        source.local_shards()[1].tensor.fill_(7)
        assert ckpt.stage({"s": source}, 3).outcome(60) == "complete"
    into = sharded(torch.zeros(4, 3), torch.zeros(2, 3))
    with rank(tmp_path) as ckpt:
        assert ckpt.recover({"s": into}).step == 3
    for shard, wanted in zip(into.local_shards(), (rows(0, 4), torch.full((2, 3), 7.0)), strict=True):
        assert torch.equal(shard.tensor, wanted)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda shards: shards.pop(), "'s' is a ShardedTensor whose shards here are others"),
        (lambda shards: setattr(shards[0], "tensor", rows(0, 1)), "'s' .*shard 0 of rank 0"),
        (lambda shards: setattr(shards[0], "metadata", without_rank(shards[0])), "'s' .*no rank"),
    ],
    ids=["missing", "size", "rank"],
)
def test_shards_that_do_not_fit_are_refused_by_path(one_rank, tmp_path, change, why):
    source = sharded(rows(0, 4), rows(4, 2))
    change(source.local_shards())
    with rank(tmp_path) as ckpt, pytest.raises(InvalidArgument, match=why):
        ckpt.recover({"s": source})


def without_rank(shard):
    return theirs.ShardMetadata(shard.metadata.shard_offsets, shard.metadata.shard_sizes, "cpu")
