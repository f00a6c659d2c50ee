"""Every error hilm raises, as one tree.

Each error says what was found; its ``hint`` says what to do next. Domain errors also derive from the
builtin a caller would expect, so ``except ValueError`` or ``except OSError`` keep working::

    HilmError                      exit 1
    ├── UsageError                 exit 2   (ValueError)
    │   ├── UnknownLayerType
    │   ├── EmptySelection
    │   └── UnknownModel                    (KeyError)
    ├── InputError                 exit 2   (ValueError)   what was given is not usable
    │   ├── NotACheckpoint
    │   ├── HeaderError                     a header that lies or cannot be parsed; has ``.code``
    │   ├── TruncatedFile
    │   ├── UnsafePath
    │   ├── MissingShard
    │   ├── DuplicateTensor
    │   ├── AmbiguousCheckpoint
    │   ├── CorruptCheckpoint
    │   ├── UnsupportedFormat
    │   ├── PackedFormatUnsupported
    │   ├── UnsafePickle
    │   ├── NotAReel
    │   ├── MissingCompanion
    │   ├── UnsupportedVersion
    │   ├── ConversionError
    │   └── NotAStore
    ├── VerificationError          exit 3   (ValueError)   what is stored is not what was written
    │   ├── ChecksumMismatch
    │   ├── Truncated
    │   └── BaseMismatch
    ├── MissingExtra               exit 4   (ImportError)
    ├── NetworkError               exit 5   (ConnectionError)
    │   ├── NotFound                        the server does not have it
    │   ├── AuthRequired                    gated, private, or the token is refused
    │   ├── OfflineError                    offline, and not in the local cache
    │   ├── RateLimited
    │   ├── RangeUnsupported
    │   └── RemoteSourceChanged
    ├── StorageError               exit 1   (OSError)
    ├── SourceChanged              exit 1   (RuntimeError)
    ├── MemoryLimitError           exit 1   (MemoryError)
    ├── LeaseError                 exit 1   (RuntimeError)
    ├── EncoderError               exit 1   (RuntimeError)
    ├── Cancelled                  exit 1   (RuntimeError)
    ├── TrainingError              exit 1   (RuntimeError)
    ├── CatalogError               exit 1   (RuntimeError)
    │   ├── CatalogBusy
    │   ├── CatalogConflict
    │   └── CatalogSchemaError     exit 2
    └── WorkerError                exit 1   (RuntimeError)
        └── ClusterMismatch
"""

from __future__ import annotations

from typing import ClassVar


class HilmError(Exception):
    """Root of the tree.

    Args:
        message: What was found, in one line.
        hint: What to do about it; falls back to the class's own ``default_hint``.
    """

    exit_code: ClassVar[int] = 1
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling between processes with every attribute, whatever the constructor takes."""
        return (_rebuild, (type(self), self.message, self.__dict__))


def _rebuild(cls: type[HilmError], message: str, state: dict[str, object]) -> HilmError:
    error = cls.__new__(cls, message)
    error.args = (message,)
    error.__dict__.update(state)
    return error


class UsageError(HilmError, ValueError):
    """A command or call was put together wrongly."""

    exit_code = 2


class UnknownLayerType(UsageError):
    """A layer filter names a type that does not exist."""


class EmptySelection(UsageError):
    """A filter selects nothing of this checkpoint."""


class UnknownModel(UsageError, KeyError):
    """Neither a path nor the name of a model in the store."""

    default_hint = "hilm list shows the models in the store"


class InputError(HilmError, ValueError):
    """What was given cannot be used."""

    exit_code = 2


class NotACheckpoint(InputError):
    """There are no weights here that hilm can read."""

    default_hint = "give a folder or file with safetensors, PyTorch, GGUF or ONNX weights, or a Hub id"


class HeaderError(InputError):
    """A file's header cannot be parsed, or describes something impossible.

    Attributes:
        code: Stable short name of the violated rule, such as ``overlap`` or ``duplicate``.
    """

    default_hint = "the file is damaged or was not written by a conforming program; fetch it again"

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} [{code}]", hint=hint)
        self.code = code


class TruncatedFile(InputError):
    """A file ends before its header says it does."""

    default_hint = "the download or copy did not finish; fetch the file again"


class UnsafePath(InputError):
    """A file name inside a checkpoint points out of it."""


class MissingShard(InputError):
    """An index names weight files that are not there."""

    default_hint = "fetch the missing files, or remove the index"


class DuplicateTensor(InputError):
    """Two shards both hold a tensor and no index decides between them."""


class AmbiguousCheckpoint(InputError):
    """Several files could be the checkpoint."""

    default_hint = "choose one: weights_file=, --weights-file, or name the file itself"


class CorruptCheckpoint(InputError):
    """Parts of a checkpoint contradict each other."""


class UnsupportedFormat(InputError):
    """A known format that this version does not read."""


class PackedFormatUnsupported(InputError):
    """Weights are stored in a quantised form that hilm cannot decode."""

    default_hint = "convert the weights to a float type with the program that wrote them"


class UnsafePickle(InputError):
    """A pickle asks for more than building plain data."""

    default_hint = "hilm runs no code from a checkpoint; look for a safetensors version of it"


class NotAReel(InputError):
    """The file has no reel section."""

    default_hint = "hilm encode writes reels; a plain video is not one"


class MissingCompanion(InputError):
    """A reel without the video that carries its symbols."""

    default_hint = "put the file that was written with the reel beside it, under its own name"


class UnsupportedVersion(InputError):
    """A reel written by a newer format version."""

    default_hint = "upgrade hilm"


class ConversionError(InputError):
    """Weights do not have the names, shapes or types of the layout they are converted from."""


class NotAStore(InputError):
    """The storage directory holds something that is not a hilm store."""

    default_hint = "give an empty or new directory with --storage-dir"


class VerificationError(HilmError, ValueError):
    """Stored data is not what was written."""

    exit_code = 3


class ChecksumMismatch(VerificationError):
    """Bytes do not match their checksum."""

    default_hint = "the file was damaged after it was written; restore it or encode again"


class Truncated(VerificationError):
    """A reel ends before its footer."""

    default_hint = "the copy did not finish; fetch the file again or encode again"


class BaseMismatch(VerificationError):
    """A delta reel was given another base than the one it was made against."""


class MissingExtra(HilmError, ImportError):
    """An optional dependency is not installed."""

    exit_code = 4


class NetworkError(HilmError, ConnectionError):
    """The network or the Hub did not answer as needed."""

    exit_code = 5


class NotFound(NetworkError):
    """The server does not have this repository, revision or file."""

    default_hint = "check the spelling"


class AuthRequired(NetworkError):
    """The server wants a token, or the one it got may not read this."""

    default_hint = "log in with hf auth login, or set HF_TOKEN"


class OfflineError(NetworkError):
    """The network may not be used and the local cache does not have this."""

    default_hint = "unset HF_HUB_OFFLINE, or fetch it on a machine with a network: hf download"


class RateLimited(NetworkError):
    """The server asks for a longer pause than is worth waiting."""

    default_hint = "try again later; requests with a token have a larger quota"


class RangeUnsupported(NetworkError):
    """The server sends whole files only."""

    default_hint = "download the file first"


class RemoteSourceChanged(NetworkError):
    """A remote file is not, or no longer, the one that was announced."""

    default_hint = "run the command again to read the new version"


class StorageError(HilmError, OSError):
    """The operating system refused to read or write."""


class SourceChanged(HilmError, RuntimeError):
    """A checkpoint changed while it was being read."""

    default_hint = "wait until the writer has finished, then run the command again"


class MemoryLimitError(HilmError, MemoryError):
    """One request does not fit the memory limit."""


class LeaseError(HilmError, RuntimeError):
    """A streamed buffer was used outside its lifetime."""


class EncoderError(HilmError, RuntimeError):
    """An encoder fed by a stream failed."""


class Cancelled(HilmError, RuntimeError):
    """The work was cancelled on request."""


class TrainingError(HilmError, RuntimeError):
    """Training went wrong: its loss is no number, or a process died."""


class CatalogError(HilmError, RuntimeError):
    """The catalog cannot be read or written."""


class CatalogBusy(CatalogError):
    """Another process holds the catalog's writer lock."""

    default_hint = "wait for the other hilm process, or raise --lock-timeout"


class CatalogConflict(CatalogError):
    """Commits kept conflicting with another writer."""


class CatalogSchemaError(CatalogError):
    """The catalog was written by a newer hilm."""

    exit_code = 2
    default_hint = "upgrade hilm"


class WorkerError(HilmError, RuntimeError):
    """A worker process failed or died."""


class ClusterMismatch(WorkerError):
    """A machine of the cluster runs another program than this one."""

    default_hint = "install the same versions of hilm, Ray and Python on every machine"
