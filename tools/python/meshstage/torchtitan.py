"""CheckpointManager: torchtitan's, with our staging and our files. Importing it imports torchtitan.

    checkpoint=meshstage.torchtitan.CheckpointManager.Config(enable=True, async_mode="async")

in a Trainer's config, in the place of torchtitan's CheckpointManager.Config.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torchtitan.components import checkpoint as titan
from torchtitan.tools.utils import GarbageCollection

from meshstage._dcp_files import METADATA, THEIR_METADATA
from meshstage.dcp import Reader, Writer
from meshstage.errors import InvalidState
from meshstage.torch import Stager

__all__ = ["CheckpointManager"]

_THEIR_FILES = (THEIR_METADATA, "model.safetensors.index.json")  # torchtitan takes a step with one as whole


class CheckpointManager(titan.CheckpointManager):
    """torchtitan's CheckpointManager, whose checkpoints are meshstage.dcp's: a save that is cut off
    is never loaded, and every item has a digest. With ``async_mode`` the state is copied into
    memory that is kept: "async" copies before save() returns, "async_with_pinned_mem" in a thread.

    Folders that torchtitan itself wrote are loaded, too. Hugging Face's format and remote folders
    stay torchtitan's; for remote folders "async_with_pinned_mem" still copies by our Stager.
    ``keep_latest_k`` counts only whole steps and the one that is being saved. ``close`` waits for
    an asynchronous save and raises its error.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(titan.CheckpointManager.Config):
        """torchtitan's options, and one more. ``build`` makes the class above."""

        trusted: bool = False
        """Whether loading may run the code of pickles in the checkpoint (Reader's ``trusted``)."""

    def __init__(self, config: Config, **parts: Any):
        self._trusted = config.trusted
        self._saved_to: Path | None = None  # the folder of the newest save, which may still be going on
        super().__init__(config, **parts)
        if not self.enable or self.async_mode is titan.AsyncMode.DISABLED:
            return
        in_thread = self.async_mode is titan.AsyncMode.ASYNC_WITH_PINNED_MEM
        self.stager = Stager(
            async_staging=in_thread,
            share_memory=in_thread,  # another process writes the files
            pin_memory=in_thread and torch.cuda.is_available(),
        )

    def dcp_save(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        async_mode: titan.AsyncMode,
        enable_garbage_collection: bool = False,
        to_hf: bool = False,
    ) -> Any:
        if to_hf or not Writer.validate_checkpoint_id(checkpoint_id):
            return super().dcp_save(state_dict, checkpoint_id, async_mode, enable_garbage_collection, to_hf)
        self._saved_to = Path(checkpoint_id)
        self._saved_to.mkdir(parents=True, exist_ok=True)  # so that the purge counts it
        writer = Writer(checkpoint_id)
        if async_mode is titan.AsyncMode.DISABLED:
            saved = dcp.save(state_dict, storage_writer=writer)
        else:
            in_process = async_mode is titan.AsyncMode.ASYNC_WITH_PINNED_MEM
            saved = dcp.async_save(
                state_dict,
                storage_writer=writer,
                process_group=self.pg,
                async_checkpointer_type=AsyncCheckpointerType.PROCESS if in_process else AsyncCheckpointerType.THREAD,
                async_stager=self.stager,
            )
        if enable_garbage_collection:
            GarbageCollection.collect("after a save by meshstage")
        return saved

    def dcp_load(
        self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool
    ) -> None:
        if from_hf or not Writer.validate_checkpoint_id(checkpoint_id):
            super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)
            return
        if (Path(checkpoint_id) / THEIR_METADATA).is_file():
            if _is_ours(checkpoint_id):
                raise InvalidState(
                    f"{checkpoint_id} has two saves: {METADATA} is ours, {THEIR_METADATA} is PyTorch's. "
                    "Remove the one that is not to be loaded"
                )
            super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)
            return
        dcp.load(state_dict, storage_reader=Reader(checkpoint_id, trusted=self._trusted))
        if titan.MODEL in self.states:  # its part of state_dict is flat, so DCP does not load it
            self.states[titan.MODEL].load_state_dict(state_dict)

    def _find_load_step(self, folder: str = "") -> int:
        newest = super()._find_load_step(folder)
        if not Writer.validate_checkpoint_id(folder or self.folder):
            return newest
        ours = [step for step, path in _steps(folder or self.folder) if _is_ours(path)]
        return max([newest, *ours])

    def _purge_stale_checkpoints(self) -> None:
        if not Writer.validate_checkpoint_id(self.folder):
            super()._purge_stale_checkpoints()
            return
        if not self._should_purge():
            return
        steps = _steps(self.folder)
        kept = [step for step, path in steps if _is_whole(path) or path == self._saved_to]
        if len(kept) < self.keep_latest_k:
            return
        oldest = kept[-self.keep_latest_k]
        for step, path in steps:
            if step < oldest:
                self.purge_queue.put(str(path))

    def _close(self) -> None:
        # __del__ calls this again, also for an object whose __init__ raised.
        saving, self.save_future = getattr(self, "save_future", None), None
        try:
            if saving is not None:
                saving.result()
        finally:
            super()._close()


def _steps(folder: str | Path) -> list[tuple[int, Path]]:
    """The folders of steps, the oldest step first."""
    found = ((re.fullmatch(r"step-([0-9]+)", path.name), path) for path in Path(folder).glob("step-*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _is_ours(folder: str | Path) -> bool:
    return (Path(folder) / METADATA).is_file()


def _is_whole(folder: Path) -> bool:
    return _is_ours(folder) or any((folder / name).is_file() for name in _THEIR_FILES)
