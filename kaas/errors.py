"""What can go wrong, one class each.

Every error that a user can cause or that the outside world can bring about is a `KaasError` whose text is one line
that says what to do. Foreign exceptions are mapped into this tree where they first appear.
"""


class KaasError(Exception):
    """The root: a command line prints its text as one line and exits with `exit_code`."""

    exit_code = 1


class UsageError(KaasError):
    """A command was given something that cannot work: a bad number, a file that is missing, a port in use."""

    exit_code = 2


class ModuleError(UsageError):
    """A kernel or client file that is missing, cannot be read, or lacks the functions of its contract."""


class FrameError(KaasError):
    """Bytes on a connection that are no frame of ours, or one over the size limit."""

    def __init__(self, message: str, request_id: int = 0) -> None:
        super().__init__(message)
        self.request_id = request_id


class ConnectionFailed(KaasError):
    """The connection to the server could not be made, or broke before the reply was complete."""


class Refused(KaasError):
    """The server answers, but not to us: it wants another token, say."""


class ServerNotReady(KaasError):
    """The server did not become ready within the limit."""


class ProcessFailed(KaasError):
    """A process of ours (a worker, a client, the fork server) did not start as it should."""


class WorkerUnusable(KaasError):
    """A kernel's process is of no more use (its CUDA context is lost, say): raised in `call`, it ends the worker."""


class TemporarilyUnavailable(KaasError):
    """What a kernel needs is not to be had for now: raised while a worker boots, it has the boot tried again later."""


class TaskError(KaasError):
    """A matrix task that is malformed, or that names segments which do not fit it."""


class EventLineError(KaasError):
    """A line of the server's log that begins like an event and is none."""


class ResultsError(KaasError):
    """A results folder or file that is missing, incomplete or cannot be written."""


class GpuError(KaasError):
    """GPUs, or the control daemon of MPS, that cannot be prepared for a run, or put back after it."""
