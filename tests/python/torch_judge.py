"""Runs a test file of PyTorch's, unedited, with our classes in the place of PyTorch's.

    python torch_judge.py [--theirs] FOLDER/test_state_dict_stager.py [unittest's arguments]

The files are PyTorch's and are not here: get them from its repository. Without a GPU the device
type in the text is made "cpu" while it is read, and the decorators that count GPUs do nothing;
--theirs leaves PyTorch's classes in place, to see what passes on them.
"""

import importlib.abc
import importlib.util
import os
import re
import sys
import unittest
import warnings
from pathlib import Path


class Reader(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports the file by its name, also in the processes that its tests start."""

    def __init__(self, file: Path):
        self._file = file

    def find_spec(self, name, path, target=None):
        if name != self._file.stem:
            return None
        return importlib.util.spec_from_loader(name, self, origin=str(self._file))

    def get_filename(self, name):
        return str(self._file)

    def get_data(self, path):
        text = Path(path).read_text()
        text = re.sub('(?<!== )"cuda"', '"cpu"', text)  # what is compared is a case of its own
        text = re.sub(r"\.cuda\((?:[^()]|\(\))*\)", ".cpu()", text)
        return text.replace('"cpu:gloo,cuda:nccl"', '"gloo"').encode()


def prepare(theirs: bool) -> None:
    import torch
    import torch.distributed.checkpoint._state_dict_stager as stager
    import torch.testing._internal.common_distributed as distributed
    import torch.testing._internal.common_utils as utils

    def nothing(*_):
        return lambda test: test

    distributed.requires_nccl = distributed.skip_if_lt_x_gpu = nothing
    distributed.requires_accelerator_dist_backend = nothing
    distributed.HAS_ACCELERATOR = True
    if not hasattr(distributed, "MultiProcContinousTest"):  # as older files spell it
        distributed.MultiProcContinousTest = distributed.MultiProcContinuousTest
    if not torch.cuda.is_available():
        torch.accelerator.current_accelerator = lambda check_available=False: None
    utils.requires_cuda = lambda test: test
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
    if not theirs:
        import torch.distributed.checkpoint as dcp
        import torch.distributed.checkpoint._pg_transport as transport
        import torch.distributed.checkpoint._storage_utils as storage
        import torch.distributed.checkpoint.staging as staging

        import meshstage.dcp
        import meshstage.torch

        class FileSystemWriter(meshstage.dcp.Writer):
            def __init__(self, path, thread_count=1):  # ours writes with one thread
                super().__init__(path)

        dcp.FileSystemWriter = storage.FileSystemWriter = FileSystemWriter
        dcp.FileSystemReader = storage.FileSystemReader = meshstage.dcp.Reader
        stager.StateDictStager = staging.StateDictStager = meshstage.torch.StateDictStager
        transport.PGTransport = meshstage.torch.PGTransport
        staging._ReplicationStager = meshstage.torch.ReplicationStager


# Also in a process that a test has spawned, which imports this file as its main module.
if __name__ == "__main__":
    theirs = "--theirs" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--theirs"]
    os.environ["MESHSTAGE_JUDGED"] = os.path.abspath(arguments[0])
    os.environ["MESHSTAGE_JUDGED_THEIRS"] = "1" if theirs else ""
judged = Path(os.environ["MESHSTAGE_JUDGED"])
sys.meta_path.insert(0, Reader(judged))
prepare(bool(os.environ["MESHSTAGE_JUDGED_THEIRS"]))

if __name__ == "__main__":
    unittest.main(judged.stem, argv=[judged.stem, "-v", *arguments[1:]])
