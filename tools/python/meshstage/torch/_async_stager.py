"""Stager: the AsyncStager of torch.distributed.checkpoint's async_save."""

import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from meshstage.errors import InvalidState
from meshstage.torch._stager import StateDictStager


class _Staged(dict):
    """The root of a staged state: async_save holds it until its upload is over."""

    __slots__ = ("__weakref__",)


class Stager:
    """``dcp.async_save(state_dict, async_stager=meshstage.torch.Stager())``.

    Without arguments ``stage`` returns when everything is copied. With ``async_staging`` it returns
    a concurrent.futures.Future: the state is read, and refused, before it returns, and its tensors
    may change when the future is done. Reuse one Stager for all saves: its memory is warm then.

    Memory that an upload still reads is never staged over: a stage() that comes before gets memory
    of its own, as much again for each upload that is not over.
    """

    _synchronize_after_execute = True

    def __init__(
        self, *, async_staging: bool = False, share_memory: bool = False, pin_memory: bool = False
    ):
        self._options = {"share_memory": share_memory, "pin_memory": pin_memory}
        self._executor = (
            ThreadPoolExecutor(1, thread_name_prefix="meshstage-stager") if async_staging else None
        )
        self._stagers: list[tuple[StateDictStager, Any]] = []  # and what it last staged, weakly
        self._future: Future | None = None
        self._closed = False

    @property
    def should_synchronize_after_execute(self) -> bool:
        return self._synchronize_after_execute

    @torch.no_grad()
    def stage(self, state_dict: dict[str, Any], **_: Any) -> dict[str, Any] | Future:
        """The staged state, or its future. Raises what is wrong with the state itself."""
        if self._closed:
            raise InvalidState("the stager is closed")
        self.synchronize_staging()
        stager = self._idle()
        result, finish = stager.begin(state_dict)
        staged = _Staged(result)
        self._stagers.append((stager, weakref.ref(staged)))
        del result
        if self._executor is None:
            finish()
            return staged
        self._future = self._executor.submit(_finish, finish, staged)
        return self._future

    def synchronize_staging(self) -> None:
        """Returns when nothing is being copied any more. Errors are in the future."""
        future, self._future = self._future, None
        if future is not None:
            future.exception()

    def close(self) -> None:
        """Lets go of the memory; what an upload still reads stays until it is over."""
        self._closed = True
        self.synchronize_staging()
        if self._executor is not None:
            self._executor.shutdown()
        for stager, _ in self._stagers:
            stager.close()
        self._stagers.clear()

    def _idle(self) -> StateDictStager:
        for i, (stager, last) in enumerate(self._stagers):
            if last() is None:
                del self._stagers[i]
                return stager
        return StateDictStager(**self._options)


@torch.no_grad()
def _finish(finish, staged):
    finish()
    return staged
