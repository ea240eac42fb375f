"""PyTorch's StateDictStager and _ReplicationStager on the workloads of stage_bench and replicate_bench.

usage: torch_peer.py stage | replicate [gpt2 | gpt2-half | small] [ROUNDS]
Needs PyPI's torch. Prints medians, after one staging that is not counted; replicate: 2 ranks over
Gloo, every rank's state held by the other, nothing written to disk. GB = 1e9 bytes.
"""
import os
import socket
import statistics
import sys
import tempfile
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
    sys.exit(__doc__)


def storage_bytes(value, seen):
    if isinstance(value, dict):
        return sum(storage_bytes(v, seen) for v in value.values())
    if not isinstance(value, torch.Tensor) or value.untyped_storage().data_ptr() in seen:
        return 0
    seen.add(value.untyped_storage().data_ptr())
    return value.untyped_storage().nbytes()


def report(what, name, state, first, times):
    gb, median = storage_bytes(state, set()) / 1e9, statistics.median(times)
    print(f"{name} {gb:.3f} GB | torch {torch.__version__} {what}: first {first * 1e3:.1f} ms, "
          f"then {median * 1e3:.1f} ms ({gb / median:.2f} GB/s)", flush=True)


def timed(what):
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


def stage(name, rounds):
    state, stager = workload(name), StateDictStager()
    first = timed(lambda: stager.stage(state))
    report("StateDictStager", name, state, first,
           [timed(lambda: stager.stage(state)) for _ in range(rounds)])


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


def replicate(name, rounds):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(rank_process, args=(name, rounds, port), nprocs=2)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("stage", "replicate"):
        sys.exit(__doc__)
    run = stage if sys.argv[1] == "stage" else replicate
    run(sys.argv[2] if len(sys.argv) > 2 else "gpt2", int(sys.argv[3]) if len(sys.argv) > 3 else 9)
