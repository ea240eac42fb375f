"""What PyTorch takes for the workloads of `meshstage bench`: its stager and its ways to a peer.

usage: torch_peer.py stage | replicate | transport [gpt2 | gpt2-half | small | mid | big] [ROUNDS] [--json] [--device cuda]
stage: StateDictStager; with --device cuda of tensors on a GPU, into pinned memory. replicate: _ReplicationStager, 2 ranks over Gloo, each state held by the
other, nothing written to disk. transport: PGTransport, both ways at once over two groups, into
memory that is there; it neither stages nor checks. Needs PyPI's torch. Prints medians, after one
time that is reported by itself. GB = 1e9 bytes.
"""
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.checkpoint._state_dict_stager import StateDictStager
from torch.distributed.checkpoint.staging import _ReplicationStager


def gpt2(vocabulary, layers):
    d, context = 768, 1024
    shapes = {"wte.weight": (vocabulary, d), "wpe.weight": (context, d)}
    for i in range(layers):
        p = f"h.{i}."
        shapes |= {p + "ln_1.weight": (d,), p + "ln_1.bias": (d,),
                   p + "attn.c_attn.weight": (d, 3 * d), p + "attn.c_attn.bias": (3 * d,),
                   p + "attn.c_proj.weight": (d, d), p + "attn.c_proj.bias": (d,),
                   p + "ln_2.weight": (d,), p + "ln_2.bias": (d,),
                   p + "mlp.c_fc.weight": (d, 4 * d), p + "mlp.c_fc.bias": (4 * d,),
                   p + "mlp.c_proj.weight": (4 * d, d), p + "mlp.c_proj.bias": (d,)}
    shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    model = {k: torch.full(s, 0.125) for k, s in shapes.items()}
    model["lm_head.weight"] = model["wte.weight"]
    optimizer = {k: {"exp_avg": torch.full(s, 0.5), "exp_avg_sq": torch.full(s, 0.25),
                     "step": torch.tensor(1.0)} for k, s in shapes.items()}
    return {"model": model, "optimizer": optimizer, "step": 1}


def workload(name):
    if name == "gpt2":
        return gpt2(50257, 12)
    if name == "gpt2-half":
        return gpt2(25136, 6)
    if name == "small":
        return {f"t{i}": torch.full((1024,), float(i)) for i in range(10000)}
    if name == "mid":
        return {f"t{i}": torch.full((1 << 20,), float(i)) for i in range(256)}
    if name == "big":
        return {"t0": torch.zeros(1 << 28)}
    sys.exit(__doc__)


def storage_bytes(value, seen):
    if isinstance(value, dict):
        return sum(storage_bytes(v, seen) for v in value.values())
    if not isinstance(value, torch.Tensor) or value.untyped_storage().data_ptr() in seen:
        return 0
    seen.add(value.untyped_storage().data_ptr())
    return value.untyped_storage().nbytes()


def report(what, name, state, first, times):
    bytes_ = storage_bytes(state, set())
    median = statistics.median(times)
    if as_json():
        print(json.dumps({"what": what, "workload": name, "bytes": bytes_, "first_s": first,
                          "s": [min(times), median, max(times)], "torch": torch.__version__}), flush=True)
        return
    print(f"{name} {bytes_ / 1e9:.3f} GB | torch {torch.__version__} {what}: first {first * 1e3:.1f} ms, "
          f"then {median * 1e3:.1f} ms ({bytes_ / 1e9 / median:.2f} GB/s)", flush=True)


def device():
    return sys.argv[sys.argv.index("--device") + 1] if "--device" in sys.argv[:-1] else "cpu"


def on_device(value, moved):
    """The state with its tensors on device(); tensors that are one object stay one."""
    if isinstance(value, dict):
        return {k: on_device(v, moved) for k, v in value.items()}
    if not isinstance(value, torch.Tensor) or device() == "cpu":
        return value
    return moved.setdefault(id(value), value.to(device()))


def as_json():
    return "--json" in sys.argv


def timed(what):
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


def stage(name, rounds):
    state = on_device(workload(name), {})
    stager = StateDictStager(pin_memory=device() != "cpu")

    def once():
        stager.stage(state)
        if device() != "cpu":
            torch.cuda.synchronize()

    first = timed(once)
    report("StateDictStager", name, state, first, [timed(once) for _ in range(rounds)])


def rank_process(rank, name, rounds, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                      WORLD_SIZE="2", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    state = workload(name)
    with tempfile.TemporaryDirectory() as directory:
        stager = _ReplicationStager(pg=dist.group.WORLD, timeout=timedelta(seconds=120),
                                    device=torch.device("cpu"), storage_dir=directory)
        stager._persist_state_dict = lambda *ignored: None

        def once():
            stager.stage(state)
            dist.barrier()

        dist.barrier()
        first = timed(once)
        times = [timed(once) for _ in range(rounds)]
        if rank == 0:
            report("_ReplicationStager, 2 ranks", name, state, first, times)
        dist.barrier()
    dist.destroy_process_group()


def transport_process(rank, name, rounds, port):
    from torch.distributed.checkpoint._pg_transport import PGTransport
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                      WORLD_SIZE="2", GLOO_SOCKET_IFNAME="lo")
    timeout = timedelta(seconds=120)
    dist.init_process_group("gloo", timeout=timeout)
    # A group for each direction: a transport's messages are one after the other.
    groups = [dist.new_group([0, 1], backend="gloo") for _ in range(2)]
    state, into = workload(name), workload(name)
    ways = [PGTransport(group, timeout, torch.device("cpu"), lambda: into) for group in groups]

    def once():
        threads = [threading.Thread(target=lambda: ways[rank].send_checkpoint([1 - rank], state)),
                   threading.Thread(target=lambda: ways[1 - rank].recv_checkpoint(1 - rank))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        dist.barrier()

    dist.barrier()
    first = timed(once)
    times = [timed(once) for _ in range(rounds)]
    if rank == 0:
        report("PGTransport in place", name, state, first, times)
    dist.barrier()
    dist.destroy_process_group()


def two_ranks(what, name, rounds):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(what, args=(name, rounds, port), nprocs=2)


MODES = {"stage": stage,
         "replicate": lambda name, rounds: two_ranks(rank_process, name, rounds),
         "transport": lambda name, rounds: two_ranks(transport_process, name, rounds)}

if __name__ == "__main__":
    words = [word for i, word in enumerate(sys.argv) if i > 0 and word not in ("--json", "--device")
             and sys.argv[i - 1] != "--device"]
    if not words or words[0] not in MODES:
        sys.exit(__doc__)
    MODES[words[0]](words[1] if len(words) > 1 else "gpt2", int(words[2]) if len(words) > 2 else 9)
