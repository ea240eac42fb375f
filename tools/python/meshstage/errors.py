"""The errors of meshstage: a class for each kind on which a caller acts, below ``Error``.

``rank``, ``step`` and ``path`` are for programs, ``str(error)`` is for people and contains them.
"""


class Error(Exception):
    """Every exception that meshstage raises."""

    rank: int | None = None  #: the rank the error is about
    step: int | None = None
    path: str = ""  #: in the state dict or the file system; "" if there is none


class RejoinNeeded(Error):
    """The generation has ended: ``rejoin()`` and ``recover()`` go on."""


class InvalidArgument(Error, ValueError):
    """The call itself is wrong."""


class InvalidState(Error, RuntimeError):
    """The object cannot do this now (closed, superseded)."""


class Fenced(InvalidState):
    """Another process has this rank's or this job's place: end this process."""


class Timeout(Error, TimeoutError):
    """The Store, or ranks that are to form a generation, did not come in time."""


class PeerLost(RejoinNeeded):
    """A peer died; ``rank`` names it."""


class PeerSilent(RejoinNeeded):
    """A peer was silent for the deadline."""


class CorruptData(Error):
    """Bytes do not match their digest or their format."""


class StructureMismatch(Error):
    """The state dict differs from the image; ``path`` is the first difference."""


class OutOfMemory(Error, MemoryError):
    """No room: the message has needed, available, which limit, and the remedy."""


class IoError(Error, OSError):
    """A system call failed."""


class NotFound(Error, LookupError):
    """A path, key, file or module does not exist."""


class Unrecoverable(Error):
    """No step is covered by every rank."""


class Cancelled(Error):
    """The operation was abandoned."""


#: By the name that ``meshstage::to_string(ErrorKind)`` gives a kind.
BY_KIND = {
    "invalid argument": InvalidArgument,
    "invalid state": InvalidState,
    "timeout": Timeout,
    "peer lost": PeerLost,
    "corrupt data": CorruptData,
    "structure mismatch": StructureMismatch,
    "out of memory": OutOfMemory,
    "i/o error": IoError,
    "not found": NotFound,
    "unrecoverable": Unrecoverable,
    "cancelled": Cancelled,
    "peer silent": PeerSilent,
    "fenced": Fenced,
}
