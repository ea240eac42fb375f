"""CheckpointManager: torchtitan's, with our staging and our files. Importing it imports torchtitan.

    checkpoint=meshstage.torchtitan.CheckpointManager.Config(enable=True, async_mode="async")

in a Trainer's config, in the place of torchtitan's CheckpointManager.Config.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torchtitan.components import checkpoint as titan
from torchtitan.tools.utils import GarbageCollection

from meshstage._dcp_files import METADATA
from meshstage.dcp import Reader, Writer
from meshstage.torch import Stager

__all__ = ["CheckpointManager"]

_STEP = "step-"


class CheckpointManager(titan.CheckpointManager):
    """torchtitan's CheckpointManager, whose checkpoints are meshstage.dcp's: a save that is cut off
    is never loaded, and every item has a digest. With ``async_mode`` the state is copied into
    memory that is kept: "async" copies before save() returns, "async_with_pinned_mem" in a thread.

    Folders that torchtitan itself wrote are loaded, too. Hugging Face's format and remote folders
    stay torchtitan's. The steps to load, to keep and to remove are torchtitan's as well.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(titan.CheckpointManager.Config):
        """torchtitan's options. ``build`` makes the class above."""

    def __init__(self, config: Config, **parts: Any):
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
        if from_hf or not _is_ours(checkpoint_id):
            super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)
            return
        dcp.load(state_dict, storage_reader=Reader(checkpoint_id))
        if titan.MODEL in self.states:  # its part of state_dict is flat, so DCP does not load it
            self.states[titan.MODEL].load_state_dict(state_dict)

    def _find_load_step(self, folder: str = "") -> int:
        newest = super()._find_load_step(folder)
        if not Writer.validate_checkpoint_id(folder or self.folder):
            return newest
        for path in Path(folder or self.folder).glob(f"{_STEP}*"):
            number = path.name.removeprefix(_STEP)
            if number.isdigit() and _is_ours(path):
                newest = max(newest, int(number))
        return newest


def _is_ours(folder: str | Path) -> bool:
    return Writer.validate_checkpoint_id(folder) and (Path(folder) / METADATA).is_file()
