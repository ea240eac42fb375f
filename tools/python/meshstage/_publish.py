"""Files that are there whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def publish(path: str | os.PathLike, write: Callable[[BinaryIO], None]) -> None:
    """Makes ``path`` what ``write`` writes: beside it, synced, renamed, and the folder synced.
    Until then, and after an error, ``path`` is what it was."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        write_synced(temporary, write)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_synced(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes a file and syncs it, but not its folder."""
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """What was made, renamed and removed in ``folder`` outlives a loss of power."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
