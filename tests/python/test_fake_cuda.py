"""Arrays on CUDA devices without torch and without a GPU: on the fake driver of the C++ tests, whose copies happen at the
latest moment that the streams allow. What has no driver is refused by its path."""

import ctypes
import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("numpy")
FAKE = os.environ.get("MESHSTAGE_FAKE_CUDA", "")

HEAD = """
import ctypes, os, sys, threading
import numpy as np
import meshstage
from meshstage import _meshstage

class Driver:
    # CUDA's driver through its own look-up of functions, as the C++ tests use it.
    def __init__(self, library):
        self.library = ctypes.CDLL(library)  # opened before meshstage looks for libcuda.so.1
        self("cuInit", 2000, 0)
        self.context = ctypes.c_void_p()
        self("cuDevicePrimaryCtxRetain", 7000, ctypes.byref(self.context), 0)
        self("cuCtxPushCurrent", 4000, self.context)
        stream = ctypes.c_void_p()
        self("cuStreamCreate", 2000, ctypes.byref(stream), 1)  # the legacy stream does not order it
        self.stream = stream.value

    def __call__(self, name, version, *arguments):
        found, status = ctypes.c_void_p(), ctypes.c_int()
        get = self.library.cuGetProcAddress_v2
        assert get(name.encode(), ctypes.byref(found), version, ctypes.c_uint64(1), ctypes.byref(status)) == 0
        function = ctypes.CFUNCTYPE(ctypes.c_int)(found.value)
        function.argtypes = None
        result = function(*arguments)
        assert result == 0, (name, result)

    def synchronize(self):
        # On a thread of its own, for a held driver lets it wait.
        def wait():
            self("cuCtxPushCurrent", 4000, self.context)
            self("cuStreamSynchronize", 2000, ctypes.c_void_p(self.stream))
        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    def hold(self, held):
        # Control (tests/support/fake_cuda/control.hpp): reset, hold, ...
        self.library.meshstage_fake_cuda_control.restype = ctypes.POINTER(ctypes.c_void_p)
        control = self.library.meshstage_fake_cuda_control()
        ctypes.CFUNCTYPE(None, ctypes.c_bool)(control[1])(held)

    def allocate(self, nbytes):
        address = ctypes.c_uint64()
        self("cuMemAlloc", 3020, ctypes.byref(address), ctypes.c_size_t(nbytes))
        return address.value

    def fill(self, address, nbytes, value, stream=0):
        self("cuMemsetD8Async", 3020, ctypes.c_uint64(address), ctypes.c_ubyte(value),
             ctypes.c_size_t(nbytes), ctypes.c_void_p(stream))

    def read(self, address, nbytes):
        data = np.zeros(nbytes, np.uint8)
        self("cuStreamSynchronize", 2000, ctypes.c_void_p(0))
        self("cuStreamSynchronize", 2000, ctypes.c_void_p(self.stream))
        self("cuMemcpyDtoH", 3020, ctypes.c_void_p(data.ctypes.data), ctypes.c_uint64(address),
             ctypes.c_size_t(nbytes))
        return data

def on_device(address, nbytes):
    storage = _meshstage.ForeignStorage(address, nbytes, object(), 0)
    return _meshstage.Tensor.on_storage(storage, "U8", (nbytes,), (1,), 0)

def make():
    return meshstage.Checkpointer(
        job="cuda", directory=sys.argv[1], vault_directory=sys.argv[1], rank=0, world_size=1,
        persist_every=0)

BYTES = 300_000
"""


def check(tmp_path, code, library=FAKE):
    command = [sys.executable, "-c", HEAD + textwrap.dedent(code), str(tmp_path), library]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr


def has_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


with_fake = pytest.mark.skipif(not FAKE, reason="MESHSTAGE_FAKE_CUDA names no fake driver")


@pytest.mark.skipif(has_driver(), reason="this machine has a driver")
def test_without_a_driver_a_tensor_on_a_device_is_refused_by_its_path(tmp_path):
    check(tmp_path, """
        assert _meshstage.cuda_problem()
        state = {"model": {"weight": on_device(4096, 64)}}
        with make() as ckpt:
            try:
                ckpt.recover(state)
            except meshstage.InvalidArgument as error:
                assert error.path == "model.weight", error.path
                assert _meshstage.cuda_problem() in str(error), error
            else:
                sys.exit("not refused")
    """)


@with_fake
def test_a_mixed_state_is_staged_held_and_recovered_in_place(tmp_path):
    check(tmp_path, """
        driver = Driver(sys.argv[2])
        assert _meshstage.cuda_problem() is None
        address = driver.allocate(BYTES)
        driver.fill(address, BYTES, 0)
        state = {"device": on_device(address, BYTES), "host": np.zeros(10), "n": 0}
        with make() as ckpt:
            ckpt.recover(state)
            for step in (1, 2):
                driver.fill(address, BYTES, step)
                state["host"][:] = state["n"] = step
                staging = ckpt.stage(state, step)
                assert staging._inner.on_cpu and staging._inner.cuda_devices == [0]
                staging.before_update()
                driver.fill(address, BYTES, 255)
                state["host"][:] = state["n"] = 255
                assert staging.outcome(60) == "complete"
            assert ckpt.rejoin().recover(state).step == 2
            assert (driver.read(address, BYTES) == 2).all()
            assert (state["host"] == 2).all() and state["n"] == 2
    """)


@with_fake
def test_the_update_comes_behind_the_copies_although_the_host_goes_on(tmp_path):
    check(tmp_path, """
        import meshstage._checkpointer
        driver = Driver(sys.argv[2])
        meshstage._checkpointer._current_stream = lambda device: driver.stream
        address = driver.allocate(BYTES)
        driver.fill(address, BYTES, 0)
        state = {"device": on_device(address, BYTES)}
        with make() as ckpt:
            ckpt.recover(state)
            for step in range(1, 20):
                driver.fill(address, BYTES, step)
                driver.hold(True)  # until all is issued; then the update's stream goes first if it may
                staging = ckpt.stage(state, step)
                assert not staging._inner.on_cpu
                staging.before_update()
                driver.fill(address, BYTES, 255, driver.stream)
                update = driver.synchronize()
                driver.hold(False)
                update.join()
                assert staging.outcome(60) == "complete"
                assert ckpt.rejoin().recover(state).step == step
                assert (driver.read(address, BYTES) == step).all()
    """)


@with_fake
def test_storages_on_a_device_are_staged_to_page_locked_memory(tmp_path):
    check(tmp_path, """
        class Array:
            def __init__(self, capsule): self.capsule = capsule
            def __dlpack__(self, **_): return self.capsule
            def __dlpack_device__(self): return (1, 0)
        driver = Driver(sys.argv[2])
        address, host = driver.allocate(BYTES), np.full(1000, 7, np.uint8)
        sources = [_meshstage.SourceStorage(address, BYTES, 0),
                   _meshstage.SourceStorage(host.ctypes.data, host.nbytes)]
        for share in (False, True):
            stager = _meshstage.StorageStager(share_memory=share, pin_for=0)
            batch = _meshstage.StorageBatch(sources)
            for value in (1, 2):
                driver.fill(address, BYTES, value)
                stager.stage(batch)
                driver.fill(address, BYTES, 255)
                assert (np.from_dlpack(Array(batch.capsule(0))) == value).all()
                assert (np.from_dlpack(Array(batch.capsule(1))) == 7).all()
            assert (batch.location(0) is not None) == share
    """)
