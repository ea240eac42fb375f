"""JAX's arrays through a Checkpointer of one rank: new arrays take their places in a recovery."""

import collections

import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy
np = pytest.importorskip("numpy")

from meshstage import errors  # noqa: E402

Adam = collections.namedtuple("Adam", "count mu")  # as optax has them


def state(value):
    weights = jnp.full((3, 5), value, jnp.float32)
    return {
        "params": {"w": weights, "half": jnp.full(7, value, jnp.bfloat16)}, "tied": weights,
        "opt": (Adam(jnp.int32(value), [jnp.full(2, value)]), ()), "seen": int(value),
        "host": np.full(3, value),
    }  # fmt: skip


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(map(np.asarray, jax.tree.leaves(a)), map(np.asarray, jax.tree.leaves(b)))
    )


def test_arrays_are_replaced_in_their_containers(make):
    ckpt, staged = make(), state(7)
    ckpt.recover(staged)
    assert ckpt.stage(staged, 4).outcome(60) == "complete"
    assert same(staged, state(7))
    into = state(2)
    params, old, moments, host = into["params"], into["params"]["w"], into["opt"][0].mu, into["host"]
    assert make().recover(into).step == 4
    assert same(into, state(7))
    assert into["params"] is params and into["opt"][0].mu is moments and into["host"] is host
    assert isinstance(params["w"], jax.Array)
    assert (old == 2).all()  # who holds the old array sees no change
    assert float(jax.jit(jnp.sum)(params["half"])) == 49


def test_arrays_that_share_memory_are_no_other_structure(make):
    one = jnp.ones(5)
    apart, shared = {"w": jnp.zeros(5), "ema": jnp.ones(5)}, {"w": one, "ema": one}
    for number, (staged, into) in enumerate([(apart, dict(shared)), (shared, dict(apart))], 1):
        ckpt = make()
        ckpt.recover(dict(staged))
        assert ckpt.stage(staged, number).outcome(60) == "complete"
        assert make().recover(into).step == number
        assert same(into, staged)


def test_a_training_goes_on_after_a_loss(make):
    trained = {"w": jnp.zeros(4), "seen": 0}
    losses = [errors.PeerLost("rank 1 is gone")]
    with make() as ckpt:
        for step in ckpt.steps(trained, 9, stage_every=2):
            with step:
                assert trained["seen"] == step.number and (trained["w"] == step.number).all()
                trained["w"], trained["seen"] = trained["w"] + 1, trained["seen"] + 1
                if step.number == 5 and losses:
                    raise losses.pop()
    assert trained["seen"] == 9 and not losses


def test_a_structure_that_differs_changes_nothing(make):
    ckpt = make()
    ckpt.recover(state(7))
    into = state(2)
    into["params"]["w"] = into["tied"] = jnp.ones((3, 6))
    with pytest.raises(errors.StructureMismatch, match="params.w"):
        make().recover(into)
    assert into["seen"] == 2 and (into["params"]["w"] == 1).all()


def test_random_keys_are_refused_by_their_path(make):
    with pytest.raises(errors.InvalidArgument, match="'rng.key'.*PRNGKeyArray"):
        make().recover({"rng": {"key": jax.random.key(1)}})
