"""meshstage.torchft.Transport: torchft's CheckpointTransport, between threads and over real sockets."""

import contextlib
import inspect
import io
import re
import socket
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

from meshstage import errors  # noqa: E402
from meshstage import torchft as ours  # noqa: E402
from meshstage.torchft import Transport  # noqa: E402

MINUTE = timedelta(minutes=1)
LARGE = 64 << 20  # bytes: more than the buffers of a connection


@pytest.fixture
def transports():
    made = []

    def make(count=1, **options):
        made.extend(Transport(host="localhost", **options) for _ in range(count))
        return made[-count:] if count > 1 else made[-1]

    yield make
    for transport in made:
        transport.shutdown(wait=False)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as executor:
        yield executor


def state_of(base):
    whole = torch.arange(24.0).reshape(4, 6) + base
    return {
        "user": {"base": whole, "view": whole[1:3, ::2], "tie": [whole], "none": torch.empty(0),
                 "half": torch.full((7,), base, dtype=torch.bfloat16), "flag": torch.tensor(True)},
        "torchft": {"step": base, "lr": 0.1, "name": "x", "betas": (0.9, 0.99), "nothing": None},
    }  # fmt: skip


def same(got, base):
    want = state_of(base)
    assert got["torchft"] == want["torchft"]
    for name in ("base", "view", "none", "half", "flag"):
        a, b = got["user"][name], want["user"][name]
        assert torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride(), name
    got["user"]["base"].fill_(-1)  # shared as at the sender
    assert (got["user"]["view"] == -1).all() and (got["user"]["tie"][0] == -1).all()


def test_several_receivers_get_the_state(transports, pool):
    sender, *others = transports(4)
    asked = [pool.submit(t.recv_checkpoint, 0, sender.metadata(), 5, MINUTE) for t in others[:2]]
    sender.send_checkpoint([1, 2, 3], 5, state_of(5), MINUTE)
    asked.append(pool.submit(others[2].recv_checkpoint, 0, sender.metadata(), 5, MINUTE))
    for got in asked:
        same(got.result(60), 5)
    sender.disallow_checkpoint()
    sender.send_checkpoint([1], 6, state_of(6), MINUTE)
    same(others[0].recv_checkpoint(0, sender.metadata(), 6, MINUTE), 6)
    same(sender.recv_checkpoint(0, sender.metadata(), 6, MINUTE), 6)  # also itself


def test_metadata_is_a_word_that_never_changes(transports):
    sender, other = transports(2)
    first = sender.metadata()
    sender.send_checkpoint([1], 1, state_of(1), MINUTE)
    assert sender.metadata() == first != other.metadata() and " " not in first


def test_an_older_step_is_refused_and_a_newer_one_waited_for(transports, pool):
    sender, receiver = transports(2)
    sender.send_checkpoint([1], 5, state_of(5), MINUTE)
    with pytest.raises(errors.InvalidState, match="step 4 of rank 0 .* offers step 5"):
        receiver.recv_checkpoint(0, sender.metadata(), 4, MINUTE)
    early = pool.submit(receiver.recv_checkpoint, 0, sender.metadata(), 6, MINUTE)
    with pytest.raises(errors.Timeout, match="timed out"):
        receiver.recv_checkpoint(0, sender.metadata(), 6, timedelta(milliseconds=50))
    sender.disallow_checkpoint()
    sender.send_checkpoint([1], 6, state_of(6), MINUTE)
    same(early.result(60), 6)


def test_the_timeout_is_kept(transports):
    sender, receiver = transports(2)
    with pytest.raises(TimeoutError, match="step 1 of rank 0 .* timed out"):
        receiver.recv_checkpoint(0, sender.metadata(), 1, timedelta(milliseconds=10))
    with socket.create_server(("localhost", 0)) as silent:  # accepts by its backlog, never answers
        elsewhere = moved(sender.metadata(), silent.getsockname()[1])
        with pytest.raises(errors.Timeout, match="timed out"):
            receiver.recv_checkpoint(0, elsewhere, 1, timedelta(milliseconds=50))


def ask(transport, step):
    """A receiver that has asked and takes what the test takes."""
    connection = socket.create_connection(("localhost", transport._port), 60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.sendall(ours._ASK.pack(ours._MAGIC, ours.WIRE_VERSION, transport._secret, step, 60.0))
    return connection


def test_disallow_waits_for_a_receiver_that_was_let_in(transports, pool):
    sender, receiver = transports(2)
    sender.send_checkpoint([1], 1, {"w": torch.zeros(LARGE, dtype=torch.uint8)}, MINUTE)
    with ask(sender, 1) as slow:
        assert slow.recv(1) == b"\1"
        disallowed = pool.submit(sender.disallow_checkpoint)
        began = time.monotonic()
        while sender._offer is not None:  # from now on nobody is let in
            assert time.monotonic() - began < 30
        with pytest.raises(errors.Timeout):
            receiver.recv_checkpoint(0, sender.metadata(), 1, timedelta(milliseconds=50))
        assert not disallowed.done()
        while slow.recv(1 << 20):
            assert sender._offer is None
        disallowed.result(60)


def test_a_receiver_that_stops_is_given_up_at_the_timeout(transports):
    sender = transports()
    sender.send_checkpoint([1], 1, {"w": torch.zeros(LARGE, dtype=torch.uint8)}, timedelta(seconds=3))
    with ask(sender, 1) as slow:
        assert slow.recv(1) == b"\1"
        began = time.monotonic()
        sender.disallow_checkpoint()  # returns, though nobody takes anything
        assert time.monotonic() - began < 60


def test_a_sender_that_trickles_does_not_extend_the_timeout(transports):
    sender, receiver = transports(2)

    def trickle(listener):
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            for byte in b"\1" + (300).to_bytes(8, "little") + bytes(300):
                connection.sendall(bytes([byte]))
                time.sleep(0.01)

    with socket.create_server(("localhost", 0)) as listener:
        listener.settimeout(60)
        thread = threading.Thread(target=trickle, args=(listener,))
        thread.start()
        metadata = moved(sender.metadata(), listener.getsockname()[1])
        with pytest.raises(errors.Timeout, match="timed out"):
            receiver.recv_checkpoint(0, metadata, 1, timedelta(milliseconds=500))
        thread.join()


def moved(metadata, port):
    return re.sub(r":\d+$", f":{port}", metadata)


@contextlib.contextmanager
def between(metadata, change):
    """A sender's metadata by way of a proxy; ``change(bytes, position)`` gives what goes on."""
    target = int(metadata.rpartition(":")[2])

    def pump(listener):
        here, _ = listener.accept()
        with here, socket.create_connection(("localhost", target)) as there:
            there.sendall(here.recv(ours._ASK.size, socket.MSG_WAITALL))
            position = 0
            while data := there.recv(1 << 16):
                passed = change(bytearray(data), position)
                if passed is None:
                    return
                position += len(data)
                with contextlib.suppress(OSError):
                    here.sendall(passed)

    with socket.create_server(("localhost", 0)) as listener:
        thread = threading.Thread(target=pump, args=(listener,))
        thread.start()
        yield moved(metadata, listener.getsockname()[1])
        thread.join()


@pytest.mark.parametrize("from_end", [True, False])
def test_a_bit_that_flips_on_the_way_is_found(transports, from_end):
    sender, receiver = transports(2)
    sender.send_checkpoint([1], 1, {"w": torch.arange(100_000)}, MINUTE)
    total = 1 + 8 + 16 + len(sender._offer.structure) + 16 + 800_000
    flipped = total - 1 if from_end else 1 + 8 + 16 + 100

    def flip(data, position):
        if 0 <= flipped - position < len(data):
            data[flipped - position] ^= 1
        return data

    with between(sender.metadata(), flip) as metadata:
        what = "storage 0" if from_end else "its structure"
        with pytest.raises(errors.CorruptData, match=f"step 1 of rank 0 .*: {what} is not what was sent"):
            receiver.recv_checkpoint(0, metadata, 1, MINUTE)


def test_a_sender_that_is_gone_ends_the_wait(transports):
    sender, receiver = transports(2)
    sender.send_checkpoint([1], 1, {"w": torch.zeros(LARGE, dtype=torch.uint8)}, MINUTE)
    with between(sender.metadata(), lambda data, position: data if position < LARGE // 2 else None) as metadata:
        with pytest.raises(errors.IoError, match="did not arrive"):
            receiver.recv_checkpoint(0, metadata, 1, MINUTE)


def test_a_state_that_changes_while_it_is_sent_is_found(transports):
    sender, receiver = transports(2)
    state = {"w": torch.zeros(LARGE, dtype=torch.uint8)}
    sender.send_checkpoint([1], 1, state, MINUTE)

    def change(data, position):
        if position > LARGE // 8 and state["w"][-1] == 0:
            state["w"][-1] = 1
        return data

    with between(sender.metadata(), change) as metadata:
        with pytest.raises(errors.CorruptData, match="changed while it was sent"):
            receiver.recv_checkpoint(0, metadata, 1, MINUTE)


def test_who_does_not_know_the_secret_gets_nothing(transports):
    sender, receiver = transports(2)
    sender.send_checkpoint([1], 1, state_of(1), MINUTE)
    wrong = sender.metadata().replace(sender._secret.hex(), "0" * 32)
    with pytest.raises(errors.IoError, match="ended the connection"):
        receiver.recv_checkpoint(0, wrong, 1, MINUTE)
    with pytest.raises(errors.InvalidArgument, match="is not what Transport.metadata"):
        receiver.recv_checkpoint(0, "http://host:1/checkpoint/", 1, MINUTE)


def test_another_version_is_refused(transports):
    sender = transports()
    sender.send_checkpoint([1], 1, state_of(1), MINUTE)
    with socket.create_connection(("localhost", sender._port), 60) as connection:
        connection.sendall(ours._ASK.pack(ours._MAGIC, 99, sender._secret, 1, 60.0))
        assert b"version 1, not 99" in connection.recv(1000)


class Ran:
    def __reduce__(self):
        return (exec, ("raise SystemError('code of a checkpoint has run')",))


def test_objects_that_run_code_do_not_travel(transports):
    sender, receiver = transports(2)
    with pytest.raises(errors.InvalidArgument, match="add_safe_globals"):
        sender.send_checkpoint([1], 1, {"w": torch.ones(2), "evil": Ran()}, MINUTE)
    with pytest.raises(errors.InvalidArgument, match="cannot travel"):
        sender.send_checkpoint([1], 1, {"f": lambda: 0}, MINUTE)
    with pytest.raises(errors.InvalidArgument, match="'a.0' of layout|at 'a.0' is a Tensor of layout"):
        sender.send_checkpoint([1], 1, {"a": [torch.eye(2).to_sparse()]}, MINUTE)
    text = io.BytesIO()
    torch.save(Ran(), text)
    with sender._changed:
        sender._offer = ours._Offer(1, text.getvalue(), [], 60.0)
    with pytest.raises(errors.CorruptData, match="weights_only"):
        receiver.recv_checkpoint(0, sender.metadata(), 1, MINUTE)


def test_the_end_of_a_transport(transports, pool):
    sender, receiver = transports(2)
    waiting = pool.submit(receiver.recv_checkpoint, 0, sender.metadata(), 1, MINUTE)
    with pytest.raises(errors.Timeout):  # the one that waits has had time to come, or comes too late
        receiver.recv_checkpoint(0, sender.metadata(), 1, timedelta(milliseconds=100))
    sender.shutdown()
    sender.shutdown()
    with pytest.raises(errors.Error):
        waiting.result(60)
    with pytest.raises(errors.InvalidState, match="was shut down"):
        sender.send_checkpoint([1], 1, state_of(1), MINUTE)
    with pytest.raises(errors.IoError):
        receiver.recv_checkpoint(0, sender.metadata(), 1, MINUTE)
    assert not sender._acceptor.is_alive()


def test_shutdown_without_waiting_cuts_a_receiver_off(transports):
    sender = transports()
    sender.send_checkpoint([1], 1, {"w": torch.zeros(LARGE, dtype=torch.uint8)}, MINUTE)
    with ask(sender, 1) as slow:
        assert slow.recv(1) == b"\1"
        sender.shutdown(wait=False)
        sender.shutdown(wait=True)  # nobody is being served any more


def test_dtensors_arrive_with_their_placements(transports, one_rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    sender, receiver = transports(2)
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",))
    state = {"d": distribute_tensor(torch.arange(6.0).reshape(3, 2), mesh, [Shard(0)])}
    sender.send_checkpoint([1], 1, state, MINUTE)
    got = receiver.recv_checkpoint(0, sender.metadata(), 1, MINUTE)
    assert got["d"]._spec == state["d"]._spec
    assert torch.equal(got["d"].to_local(), state["d"].to_local())


def test_torchfts_own_multi_recovery_test(transports):
    harness = pytest.importorskip("torchft.checkpointing.transport_test")
    try:
        harness.run_multi_recovery_test(
            unittest.TestCase(), lambda rank, world_size: transports(), torch.device("cpu")
        )
    finally:
        if dist.is_initialized():  # after a failure it leaves its group
            dist.destroy_process_group()


def test_torchft_needs_nothing_that_is_not_there(transports):
    """Every method of its CheckpointTransport is here, with the same parameters."""
    theirs = pytest.importorskip("torchft.checkpointing.transport").CheckpointTransport
    for name, method in inspect.getmembers(theirs, inspect.isfunction):
        if not name.startswith("_"):
            mine = inspect.signature(getattr(Transport, name))
            assert list(mine.parameters) == list(inspect.signature(method).parameters), name
