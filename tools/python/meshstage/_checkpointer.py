"""Checkpointer: stages, replicates, persists and recovers one rank's state."""

import atexit
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshstage import _jax, _meshstage
from meshstage._steps import Step, steps

_log = logging.getLogger("meshstage")


@dataclass(frozen=True)
class Recovered:
    """What ``recover`` brought: 0 steps from "nothing" where there was none."""

    step: int
    source: str  #: "nothing", "own memory", "holder memory", "disk"
    from_rank: int  #: whose memory or disk
    generation: int  #: in which training goes on; a run's first one is some large number
    old_world_size: int = 0  #: not 0: so many ranks staged the step, in another cut (``any_world``)


class Staging:
    """One staged step on its way. May be dropped at any time: the step goes on.

    Waits take seconds (None: for as long as it takes) and let signals in at least ten times a
    second. They raise what went wrong, RejoinNeeded if the generation ended.
    """

    def __init__(self, inner=None):
        self._inner = inner

    def wait(self, timeout: float | None = None) -> bool:
        """Returns when the state may change; False at the timeout. At once for an empty one."""
        return self._inner is None or self._inner.wait_staged(timeout)

    def before_update(self) -> None:
        """Call it before the first change of the state, in place of ``wait``: where all its arrays
        are on CUDA devices, what is issued on torch's current streams from now on comes behind the
        copies, and the host goes on. Else it is ``wait``."""
        if self._inner is None:
            return
        if self._inner.on_cpu:
            self.wait()
            return
        for device in self._inner.cuda_devices:
            self._inner.before_update(device, _current_stream(device))

    def outcome(self, timeout: float | None = None) -> str | None:
        """What became of the step in memory: "complete", "failed" or "skipped"; None at the
        timeout."""
        return self._inner.outcome(timeout)

    def persisted(self, timeout: float | None = None) -> str | None:
        """What became of the step on disk: "everywhere", "not due" or "failed"."""
        return self._inner.persisted(timeout)

    @property
    def step(self) -> int:
        return self._inner.step


def _default_log(warning: bool, text: str) -> None:
    _log.log(logging.WARNING if warning else logging.INFO, "%s", text)


class Checkpointer:
    """Replicated in-memory checkpoints of one rank of a job. The ranks make theirs together.

        with meshstage.Checkpointer(job="gpt2", directory="ckpt") as ckpt:
            for step in ckpt.steps(state, 1000, stage_every=5):
                with step:
                    train(step.number)

    A state is a dict of dicts, lists, tuples, scalars and arrays: numpy's and torch's, recovered
    in place, and whatever has DLPack, on the CPU and on CUDA devices; JAX's on the CPU, which a
    recovery replaces by new ones in their dicts and lists; or a ``meshstage.torch.state(...)``.
    Rank and world size come from the launcher's variables unless they are given. Durations are
    seconds. ``connections`` is how many connections this rank wants to each rank that it exchanges
    images with, at most 16; of two ranks the smaller number counts (``stats()["connections"]``). 0:
    one up to four processors of this rank's share, else one a processor, at most 8.
    ``recovery_connections`` is the same in a recovery, for which the trainer waits; 0:
    ``connections`` if they are given, else one a processor, 2 to 8. ``trace`` names a file for
    Perfetto, ``metrics`` one for ``stats()``, kept up to date: ``m.jsonl`` gets lines of JSON,
    ``m.prom`` is Prometheus' text; rank 3 writes ``m.r3.prom``. ``log(warning, text)`` gets each
    line, on a thread of Python's own; without it the logger "meshstage" does.

    ``any_world=True`` lets the job come back with another number of ranks, or as many that cut
    their tensors otherwise, from its files in ``directory`` or from memory. With another number of
    ranks, a job that writes no files (``persist_every=0`` and no ``directory``) needs no disk for
    that, but memory: until the first step of the new ranks is complete, the old images stay beside
    the new ones. DTensors get their parts of the whole, whatever their meshes and placements were
    and are (a plain tensor is the whole); plain arrays and numbers must be the same on all ranks. A
    dict, the same on every rank, says which are not, by their keys from the root, joined by dots,
    or by those of what they are in: ``{"loader": "per rank", "seen": "summed"}``. "per rank": rank
    r has rank r's value, and a new rank keeps its own; "summed": rank 0 has the sum, the others 0;
    "first": all have the first rank's; "same": the default. ``recover`` refuses a path that no
    rank's state has (InvalidArgument), or warns if the old job may have had it. What
    ``meshstage.torch.state(rng=True)`` adds is per rank.

    Leaving the ``with`` block by its end calls ``finish()``, if ``recover`` was called; by an
    exception, ``close()``: the vault stays for the next start. In a forked child every call raises
    InvalidState. Threads: one caller. A call that a signal handler ends by an exception goes on in
    a thread of its own; the next call waits for it.
    """

    def __init__(
        self,
        job: str = "",
        directory: str | os.PathLike = "",
        *,
        vault_directory: str | os.PathLike = "/dev/shm",
        deadline: float = 30.0,
        forming_deadline: float = 300.0,
        persist_every: int = 10,
        keep: int = 1,
        block_bytes: int = 4 << 20,
        when_busy: str = "wait",
        holders: list[list[int]] | None = None,
        store: str = "",
        trace: str | os.PathLike = "",
        metrics: str | os.PathLike = "",
        verify_source: bool = False,
        connections: int = 0,
        recovery_connections: int = 0,
        any_world: bool | Mapping[str, str] = False,
        rank: int | None = None,
        world_size: int | None = None,
        log: Callable[[bool, str], None] = _default_log,
    ):
        self._inner = None
        self._begun = False  # recovered once: there is something to finish
        self._finished = False
        self._log = log
        self._queue = _meshstage.LogQueue()
        self._logs = threading.Thread(
            target=_hand_on, args=(self._queue, log), name="meshstage-log", daemon=True
        )
        self._logs.start()
        weakref.finalize(self, self._queue.close)  # of one that nobody closes: the thread ends
        _open.add(self)
        try:
            self._inner = _meshstage.Checkpointer(
                self._queue,
                job=job,
                directory=os.fspath(directory),
                vault_directory=os.fspath(vault_directory),
                deadline=deadline,
                forming_deadline=forming_deadline,
                persist_every=persist_every,
                keep=keep,
                block_bytes=block_bytes,
                when_busy=when_busy,
                holders=holders or [],
                store=store,
                trace=os.fspath(trace),
                metrics=os.fspath(metrics),
                verify_source=verify_source,
                connections=connections,
                recovery_connections=recovery_connections,
                any_world=_kinds(any_world),
                rank=rank,
                world_size=world_size,
            )
        except BaseException:
            self._end_logs()
            raise
        self._deadline = deadline
        self._waits_when_busy = when_busy == "wait"
        self.rank: int = self._inner.rank()
        self.world_size: int = self._inner.world_size()
        self.job: str = self._inner.job()

    def recover(self, state: dict) -> Recovered:
        """Collective. Brings the newest step that all ranks can still produce into ``state``:
        arrays in place, scalars into its dicts and lists. Where there is none, ``state`` is staged
        as step 0. Raises StructureMismatch (nothing was touched), Unrecoverable, RejoinNeeded."""
        tree = _tree_of(state)
        kinds = state.plain_kinds() if hasattr(state, "plain_kinds") else {}
        into = _jax.views(tree, fresh=True)
        got = Recovered(*self._get().recover(into, _foreign(), kinds))
        if into is not tree:
            _jax.put_back(tree, into)
        if tree is not state:
            state.write(tree)
        self._begun = True
        return got

    def stage(self, state: dict, step: int) -> Staging:
        """Starts staging; arrays may change when the result's ``wait()`` has returned."""
        return Staging(self._get().stage(_jax.views(_tree_of(state)), step, _foreign()))

    def rejoin(self) -> "Checkpointer":
        """After RejoinNeeded: forms the next generation with all ranks. Then ``recover``."""
        self._get().rejoin()
        return self

    def finish(self) -> None:
        """Collective; the orderly end: the newest step goes to disk, the vaults go away."""
        self._get().finish()
        self._finished = True

    def close(self) -> None:
        """Lets go of everything; the vault stays unless ``finish`` was called."""
        if self._inner is not None and self._inner.here():
            self._inner.close()
        self._inner = None
        self._end_logs()

    def steps(
        self, state: dict, count: int, *, stage_every: int = 1, overlap: bool = False,
        max_losses: int = 10, max_failed_steps: int = 10, finish: bool = True,
        recovered: Callable[[Recovered], None] | None = None,
        build: Callable[[], Any] | None = None,
    ) -> Iterator[Step]:  # fmt: skip
        """Recovers, then yields each step to train, stages every ``stage_every``-th and the last,
        and after the loss of a rank rejoins, recovers and goes on from there. Each step is a
        context manager: train inside ``with step:``, which a lost generation ends.

        With ``overlap`` a step begins while the one before is still copied, and its body calls
        ``step.before_update()`` before its first change. ``recovered`` is called after each
        recovery. ``finish()`` is called at the end unless ``finish`` is False.

        torch's process groups end with a rank. Where the state uses one (DDP, FSDP, FSDP2, DTensors
        on a mesh with groups), a loss closes this Checkpointer, keeps the vault, and raises
        SystemExit(75): ``meshstage run`` and torchrun then start all ranks anew. With ``build`` the
        process goes on: after a loss all ranks form the next generation (``rejoin``), then each
        calls ``build()``, which makes torch's groups and a state on them anew and returns the
        state, then the step is recovered into it; ``step.state`` is the state in use. A rank that
        was started anew must do likewise: make its Checkpointer first, then its groups and its
        state, by the same function. ``build`` is called after every loss, whatever the state, and
        before the first recovery where ``state`` is None."""
        return steps(
            self, state, count, stage_every, overlap, max_losses, max_failed_steps, finish,
            recovered, build,
        )  # fmt: skip

    def all_reduce(self, array: Any, op: str = "avg") -> None:
        """In place, over all ranks, the same bits on each: "sum", "avg", "product", "min", "max".
        A contiguous array on the CPU. Raises RejoinNeeded when a rank is lost."""
        self._get().all_reduce(array, op, _foreign())

    def broadcast(self, array: Any, root: int = 0) -> None:
        """``array`` of ``root`` to all, in place."""
        self._get().broadcast(array, root, _foreign())

    def barrier(self) -> None:
        """Nobody leaves before all have come."""
        self._get().barrier()

    def tell_waiting(self) -> None:
        """For a loop that waits for outcome() with a timeout: tells the other ranks that this one
        waits, so that a rank that does not stage the step is found. Call it each ``deadline``."""
        self._get().tell_waiting()

    def persist_now(self) -> None:
        """The step that is staged next goes to disk on every rank."""
        self._get().persist_now()

    def request_termination(self) -> None:
        """The job is to end, on all ranks at the same step; ``steps`` then ends by itself."""
        self._get().request_termination()

    def _throw_if_lost(self) -> None:
        self._get().throw_if_lost()

    @property
    def ending(self) -> bool:
        """All ranks have agreed that the step that is staged next is the last."""
        return self._get().ending()

    @property
    def generation(self) -> int:
        return self._get().generation()

    def stats(self) -> dict:
        """Figures since the start; bytes, and seconds of the newest step."""
        return self._get().stats()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind, value, trace) -> None:
        try:
            if kind is None and self._begun and not self._finished:
                self.finish()
        finally:
            self.close()

    def _get(self):
        if self._inner is None:
            raise _closed()
        return self._inner

    def _end_logs(self) -> None:
        _open.discard(self)
        self._queue.close()
        if self._logs.is_alive() and self._logs is not threading.current_thread():
            self._logs.join()


def _kinds(any_world: bool | Mapping[str, str]) -> dict[str, str] | None:
    """By path; None where the number of ranks stays."""
    if isinstance(any_world, bool):
        return {} if any_world else None
    if not isinstance(any_world, Mapping):
        raise TypeError(f"any_world is {any_world!r}: True, False, or a dict of paths and kinds")
    for path, kind in any_world.items():
        if not isinstance(path, str) or not isinstance(kind, str):
            raise TypeError(f"any_world: {path!r}: {kind!r} is no pair of strings")
    return dict(any_world)


def _closed() -> Exception:
    from meshstage.errors import InvalidState

    return InvalidState("this Checkpointer is closed")


def _tree_of(state: Any) -> dict:
    """The dict itself, or what an object with read() and write() is now (meshstage.torch.state)."""
    return state if isinstance(state, dict) else state.read()


def _foreign() -> Callable[[Any], Any] | None:
    """What stands for objects of other libraries in one state. None where there is none."""
    if "torch" not in sys.modules:
        return None
    from meshstage.torch._tree import StandIns

    return StandIns()


def _current_stream(device: int) -> int:
    """torch's, by its number; the default stream without torch."""
    torch = sys.modules.get("torch")
    return 0 if torch is None else torch.cuda.current_stream(device).cuda_stream


def _hand_on(queue, log) -> None:
    while (line := queue.pop()) is not None:
        try:
            log(*line)
        except Exception:
            logging.getLogger("meshstage").exception("the log callback failed")


# Closed before the interpreter is: no thread may come back to Python afterwards.
_open: weakref.WeakSet[Checkpointer] = weakref.WeakSet()
_process = os.getpid()


def _close_all() -> None:
    if os.getpid() != _process:
        return
    for checkpointer in list(_open):
        checkpointer.close()


atexit.register(_close_all)
