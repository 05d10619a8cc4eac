"""The boundary between a user and the code: one sentence for what a user can change, a traceback for a defect."""

import errno
import importlib.metadata
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from scratchlm.run.display import printable

# Whose exceptions say what is wrong with a repository, its configuration or its remote
OF_DVC_AND_GIT = {
    "adlfs", "aiobotocore", "aiohttp", "asyncssh", "azure", "botocore", "dulwich", "dvc", "dvc_data", "dvc_http",
    "dvc_objects", "dvc_s3", "dvc_ssh", "fsspec", "gcsfs", "google", "_pygit2", "pygit2", "scmrepo", "sshfs",
}  # fmt: skip
MEMORY = r"out of memory|can't allocate memory|not enough memory|Unable to allocate"  # of torch and numpy
AGAIN = "correct that and run this again"
NOT_ALLOWED = "correct its permissions or its owner, or name another path"
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, then run this again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), NOT_ALLOWED),
    errno.EIO: "check the disk or the network drive, then run this again",
    errno.ENOMEM: "free some memory, or lower batch_size or the size of the model",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`), then run this again",
}


class UserError(Exception):
    """One sentence that says what is wrong, what is allowed and what to do; printed without a traceback, status 1.

    Raised for what a user gave or can change: parameters, files, servers, revisions. A defect of this project keeps
    its own exception and its traceback.
    """


@contextmanager
def boundary(name: str, interrupted: Callable[[], str] = lambda: "interrupted") -> Iterator[None]:
    """End the process with status 1 if the block fails: with one sentence, or for a defect with its traceback.

    name: precedes each sentence. interrupted: returns the sentence for Ctrl-C, which waits for no other thread.
    """
    try:
        yield
    except KeyboardInterrupt:
        _end_at_once(f"{name}: {interrupted()}")
    except BrokenPipeError:  # nobody reads any more, as after `| head`
        sys.exit(1)
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if (sentence := explained(error)) is not None:
            sys.exit(f"{name}: {printable(sentence)}")
        version = "of unknown version"
        with suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version("scratchlm")
        print(
            f"{name}: this is a defect of scratchlm {version}; please report it, with the lines below, under Issues in "
            "its repository",
            file=sys.stderr,
        )
        raise


def _end_at_once(sentence: str) -> NoReturn:
    """End the process with status 1. sys.exit waits for threads, which may wait for a server for minutes."""
    if all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.exit(sentence)
    print(sentence, file=sys.stderr, flush=True)
    os._exit(1)


def explained(error: BaseException) -> str | None:
    """Return the sentence for an error that a user can act on; None for a defect."""
    if isinstance(error, UserError | FloatingPointError):  # the second: a model that diverged
        return str(error)
    text = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(str(error).split()))  # without DVC's colours
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search(MEMORY, text)):
        return f"out of memory ({text.partition('. ')[0] or 'no details'}); lower batch_size or the size of the model"
    if refusal := os_error(error):
        reason = (refusal.strerror or text or type(error).__name__).rstrip(".")
        if refusal.errno and "[errno" in reason:  # pyarrow says more, and the file again
            reason = os.strerror(refusal.errno)
        where = f"{os.fsdecode(refusal.filename)}: " if isinstance(refusal.filename, str | bytes) else ""
        return f"{where}{reason[:1].lower()}{reason[1:]}; {REMEDIES.get(refusal.errno or 0, AGAIN)}"
    is_plugin = isinstance(error, ImportError) and "is supported, but requires" in text  # a remote's, for DVC
    if is_plugin or type(error).__module__.partition(".")[0] in OF_DVC_AND_GIT:
        return f"{text.rstrip('.') or type(error).__name__}; {AGAIN}"
    return None


def os_error(error: BaseException) -> OSError | None:
    """Return what the file system refused: the error itself, or what a library says of it; else None.

    torch.save raises a RuntimeError that only says where it was in the file.
    """
    if isinstance(error, OSError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None
