"""CheckpointIO: Lightning's files, each there whole or not at all, and on the disk when the save returns.

    trainer = Trainer(plugins=[meshstage.lightning.CheckpointIO()])

Importing it imports lightning, or else pytorch_lightning's lightning_fabric.
"""

import os
import sys
from typing import Any

import torch

if "lightning" in sys.modules or "lightning_fabric" not in sys.modules:
    try:
        from lightning.fabric.plugins import TorchCheckpointIO
    except ImportError:
        from lightning_fabric.plugins import TorchCheckpointIO
else:  # pytorch_lightning's classes are others than those of lightning
    from lightning_fabric.plugins import TorchCheckpointIO

from meshstage._publish import publish
from meshstage.errors import InvalidArgument

__all__ = ["CheckpointIO"]


class CheckpointIO(TorchCheckpointIO):
    """Lightning's TorchCheckpointIO, whose ``save_checkpoint`` survives a kill and a loss of power:
    until the new file is complete and synced, ``path`` is the former one. It writes the file
    without a copy of the checkpoint in memory. Local paths alone.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any | None = None
    ) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are for remote storage, and this one is local")
        path = os.fspath(path)
        if "://" in path:
            raise InvalidArgument(f"{path} is not local: use Lightning's own CheckpointIO")
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        publish(path, lambda file: torch.save(checkpoint, file))
