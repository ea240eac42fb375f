"""Transport: how torchft's Manager brings a replica that is behind up to date. Importing it imports torch.

    manager = torchft.Manager(..., checkpoint_transport=meshstage.torchft.Transport())

What travels (all numbers little-endian). The receiver connects and asks:

    b"meshstft"  u32 version  16 bytes secret, from metadata()  i64 step  f64 seconds that it waits

and the sender answers:

    u8 0  u32 length  text                               it has no such checkpoint, and why
    u8 1  u64 length  16 bytes digest  structure         what torch.save made of the state without its
                                                         tensors' bytes; torch.load reads it, weights only
          for each storage: 16 bytes digest  its bytes   as many as the structure says

A digest is XXH3-128, made before the bytes are sent: a state that changes meanwhile is found, too.
"""

import contextlib
import io
import os
import pickle
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import torch
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only, tree_unflatten

from meshstage import _meshstage
from meshstage._dcp_files import tensor_bytes
from meshstage.errors import CorruptData, InvalidArgument, InvalidState, IoError, Timeout
from meshstage.torch import _pg_transport as _wire

__all__ = ["Transport"]

T = TypeVar("T")

WIRE_VERSION = 1
_MAGIC = b"meshstft"
_ASK = struct.Struct("<8sI16sqd")
_SCHEME = "meshstage-torchft"
_LARGEST_STRUCTURE = 1 << 32


@dataclass(frozen=True)
class _Offer:
    """A checkpoint that receivers may have now."""

    step: int
    structure: bytes
    storages: list[torch.Tensor]  # each as its bytes, on the CPU
    seconds: float  # for each receiver


class Transport(Generic[T]):
    """torchft's CheckpointTransport over TCP of its own: each receiver connects to the sender.

    ``send_checkpoint`` returns at once and refers to the state's CPU tensors (those of devices are
    copied); until ``disallow_checkpoint`` has returned they may not change. A receiver that comes
    before the checkpoint waits for it, as long as its own timeout; an older step is refused. Tensors that share memory do so
    at the receiver, on the CPU. Other objects have to be such as ``torch.load(weights_only=True)``
    takes (add classes by ``torch.serialization.add_safe_globals``).

    ``host`` is what receivers connect to: else MESHSTAGE_HOST, else this host's name. Every address
    of this host is listened on; who does not know the secret in ``metadata()`` gets nothing.
    Threads: one caller; the receivers are served by threads of the transport's own.
    """

    def __init__(self, host: str | None = None, port: int = 0):
        self._host = host or os.environ.get("MESHSTAGE_HOST") or socket.gethostname()
        self._secret = secrets.token_bytes(16)
        self._changed = threading.Condition()
        self._offer: _Offer | None = None
        self._sending: set[socket.socket] = set()  # to receivers that get the checkpoint now
        self._closed = False
        self._listener = _listen(port)
        self._port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="meshstage-torchft", daemon=True)
        self._acceptor.start()

    def metadata(self) -> str:
        """Where receivers find this transport. The same all the time."""
        return f"{_SCHEME}:{WIRE_VERSION}:{self._secret.hex()}@{self._host}:{self._port}"

    def send_checkpoint(self, dst_ranks: list[int], step: int, state_dict: T, timeout: timedelta) -> None:
        """Offers the state as ``step`` to whoever asks for it. Each receiver has to have all of it
        ``timeout`` after it has been let in, which bounds disallow_checkpoint, too. Raises
        InvalidArgument, with the path, for a state that cannot travel."""
        structure, storages = _encode(state_dict)
        with self._changed:
            if self._closed:
                raise InvalidState("this Transport was shut down")
            self._offer = _Offer(step, structure, storages, timeout.total_seconds())
            self._changed.notify_all()

    def disallow_checkpoint(self) -> None:
        """Lets no receiver in any more, and returns when those that were let in are done."""
        with self._changed:
            self._offer = None
            self._changed.wait_for(lambda: not self._sending)

    def recv_checkpoint(self, src_rank: int, metadata: str, step: int, timeout: timedelta) -> T:
        """The state of ``step`` from the transport with that ``metadata``. Raises Timeout, InvalidState
        where a newer step is offered, CorruptData, IoError where the sender ends meanwhile."""
        seconds = timeout.total_seconds()
        host, port, secret = _address(metadata)
        what = f"step {step} of rank {src_rank} ({host}:{port})"
        deadline = _Deadline(seconds)
        try:
            with socket.create_connection((host, port), deadline.left()) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.settimeout(deadline.left())
                connection.sendall(_ASK.pack(_MAGIC, WIRE_VERSION, secret, step, deadline.left()))
                return _receive(connection, deadline, what)
        except TimeoutError:
            raise Timeout(f"{what} timed out: it was not here within {seconds:g} s") from None
        except (EOFError, OSError) as error:
            raise IoError(f"{what} did not arrive: {error}") from error

    def shutdown(self, wait: bool = True) -> None:
        """Ends the transport. Without ``wait`` receivers that are being served are cut off."""
        with self._changed:
            self._closed, self._offer = True, None
            self._changed.notify_all()
            if not wait:
                for connection in self._sending:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        if wait:
            self._acceptor.join()
            with self._changed:
                self._changed.wait_for(lambda: not self._sending)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                time.sleep(0.1)  # no descriptors are left: a receiver of others may end
                continue
            threading.Thread(
                target=self._serve, args=(connection,), name="meshstage-torchft", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        """One receiver, or a stranger. What it does ends its own connection alone."""
        with connection, contextlib.suppress(OSError, EOFError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            magic, version, secret, step, seconds = _ASK.unpack(_exactly(connection, _ASK.size, _Deadline(10)))
            if magic != _MAGIC or not secrets.compare_digest(secret, self._secret):
                return
            if version != WIRE_VERSION:
                return _refuse(connection, f"its messages are of version {WIRE_VERSION}, not {version}")
            with self._let_in(connection, step, seconds) as offer:
                if isinstance(offer, str):
                    _refuse(connection, offer)
                else:
                    _send(connection, offer)

    @contextlib.contextmanager
    def _let_in(self, connection: socket.socket, step: int, seconds: float) -> Iterator[_Offer | str]:
        """The offer, or why there is none. disallow_checkpoint() waits for who got one."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or (self._offer and self._offer.step >= step),
                min(max(seconds, 0), threading.TIMEOUT_MAX),
            )
            offer = self._offer
            if offer is not None and offer.step == step:
                self._sending.add(connection)
        try:
            if self._closed:
                yield "the transport was shut down"
            elif offer is None or offer.step < step:
                yield "timed out"
            else:
                yield offer if offer.step == step else f"the transport offers step {offer.step}"
        finally:
            with self._changed:
                self._sending.discard(connection)
                self._changed.notify_all()


class _Deadline:
    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, more than 0. Raises TimeoutError."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    return socket.create_server(("", port), backlog=128)


def _address(metadata: str) -> tuple[str, int, bytes]:
    try:
        scheme, version, rest = metadata.split(":", 2)
        secret, _, place = rest.partition("@")
        host, _, port = place.rpartition(":")
        if (scheme, version) != (_SCHEME, str(WIRE_VERSION)) or not host:
            raise ValueError
        return host, int(port), bytes.fromhex(secret)
    except ValueError:
        raise InvalidArgument(
            f"{metadata!r} is not what Transport.metadata() gives: do all replicas use "
            f"meshstage.torchft.Transport, version {WIRE_VERSION}?"
        ) from None


def _encode(state_dict: Any) -> tuple[bytes, list[torch.Tensor]]:
    """The state without bytes of tensors, in whose places their numbers are, and the storages."""
    sent = _wire._Sent(state_dict)
    numbers = torch.arange(len(sent.structure.leaves))  # a tensor's is a view of these: one storage
    described, leaves = [], []
    for path, leaf in zip(sent.structure.paths, sent.structure.leaves, strict=True):
        if isinstance(leaf, _wire._Sharded):
            raise InvalidArgument(f"the ShardedTensor at {_wire._name(path)} cannot travel: use a DTensor")
        if isinstance(leaf, (_wire._View, _wire._Distributed)):
            leaves.append(numbers[len(described)])
            described.append(_plain(leaf))
        else:
            leaves.append(leaf)
    tree = tree_unflatten(leaves, sent.structure.tree)
    text = io.BytesIO()
    try:
        torch.save({"tree": tree, "tensors": described, "nbytes": sent.structure.nbytes}, text)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InvalidArgument(f"the state has an object that cannot travel: {error}") from error
    _load(text.getvalue(), InvalidArgument)  # what the receiver would refuse is refused here
    return text.getvalue(), [_wire._bytes(storage).cpu() for storage in sent.storages]


def _plain(leaf: Any) -> tuple:
    if isinstance(leaf, _wire._Distributed):
        return (*_plain(leaf.local), leaf.spec)
    return leaf.storage, leaf.dtype, leaf.size, leaf.stride, leaf.offset


def _load(structure: bytes, error_class: type[Exception]) -> dict[str, Any]:
    try:
        return torch.load(io.BytesIO(structure), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise error_class(
            "the state has an object that torch.load(weights_only=True) does not take. Allow its "
            f"class with torch.serialization.add_safe_globals on both sides: {error}"
        ) from error


def _send(connection: socket.socket, offer: _Offer) -> None:
    deadline = _Deadline(offer.seconds)

    def send(data) -> None:
        connection.settimeout(deadline.left())
        connection.sendall(data)

    structure = torch.frombuffer(bytearray(offer.structure), dtype=torch.uint8)
    send(struct.pack("<BQ", 1, len(offer.structure)))
    for data in [structure, *offer.storages]:
        send(_digest(data))
        send(tensor_bytes(data))


def _refuse(connection: socket.socket, why: str) -> None:
    connection.settimeout(10)
    text = why.encode()
    connection.sendall(struct.pack("<BI", 0, len(text)) + text)


def _receive(connection: socket.socket, deadline: _Deadline, what: str) -> Any:
    def exactly(n: int) -> bytearray:
        return _exactly(connection, n, deadline)

    def checked(nbytes: int, which: str) -> torch.Tensor:
        digest = exactly(16)
        data = torch.empty(nbytes, dtype=torch.uint8)
        _into(connection, tensor_bytes(data), deadline)
        if _digest(data) != digest:
            raise CorruptData(f"{what}: {which} is not what was sent, or changed while it was sent")
        return data

    if exactly(1) == b"\0":
        (length,) = struct.unpack("<I", exactly(4))
        why = exactly(min(length, 10_000)).decode(errors="replace")
        if why.startswith("timed out"):
            raise TimeoutError
        raise InvalidState(f"{what} is not to be had: {why}")
    (length,) = struct.unpack("<Q", exactly(8))
    if length > _LARGEST_STRUCTURE:
        raise CorruptData(f"{what}: its structure would have {length} bytes")
    sent = _load(bytes(tensor_bytes(checked(length, "its structure"))), CorruptData)
    data = [checked(n, f"storage {i}").untyped_storage() for i, n in enumerate(sent["nbytes"])]
    tensors = [_tensor(described, data) for described in sent["tensors"]]
    return tree_map_only(torch.Tensor, lambda number: tensors[int(number)], sent["tree"])


def _tensor(described: tuple, data: list[torch.UntypedStorage]) -> torch.Tensor:
    local = _wire._tensor(_wire._View(*described[:5]), data)
    return local if len(described) == 5 else DTensor(local, described[5], requires_grad=False)


def _exactly(connection: socket.socket, n: int, deadline: _Deadline) -> bytearray:
    data = bytearray(n)
    _into(connection, memoryview(data), deadline)
    return data


def _into(connection: socket.socket, place: memoryview, deadline: _Deadline) -> None:
    got = 0
    while got < len(place):
        connection.settimeout(deadline.left())
        n = connection.recv_into(place[got:], 0)
        if n == 0:
            raise EOFError("the sender has ended the connection")
        got += n


def _digest(data: torch.Tensor) -> bytes:
    return bytes.fromhex(_meshstage.digest(data.data_ptr(), data.numel()))
