"""A Ray of our own on this machine, of one node or of several simulated ones, for as long as its program runs.

It listens on the loopback only, and has all its files in a folder of its own.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

from kaas import leftovers
from kaas.errors import ProcessFailed
from kaas.leftovers import Scratch
from kaas.nvidia import VISIBLE

_OBJECT_STORE = 80 * 1024 * 1024
"""Bytes; Ray takes no less than 75 MiB. Nothing goes through it."""
_LONGEST_FOLDER = 24
"""Letters of a folder in which Ray's sockets still have names that a system takes (104 on macOS)."""
_NOTICE = {
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 4,
}
"""With which a node that vanishes is found within 10 s."""


def make_folder() -> Scratch:
    """Make a folder for all of Ray's files; `close` removes it, when Ray has ended.

    Raises:
        ProcessFailed: there is no room for it.
    """
    place = tempfile.gettempdir()
    scratch = Scratch("ray.", place if len(place) <= _LONGEST_FOLDER else "/tmp")  # noqa: S108
    try:
        (scratch.folder / "ray").mkdir()
    except OSError as error:
        scratch.close()
        raise ProcessFailed(f"no folder can be made in {scratch.folder}: {error.strerror}") from None
    return scratch


def remove_folder(folder: str, run: str) -> None:
    """Remove one that another process has made, which may have ended before Ray."""
    shutil.rmtree(folder, ignore_errors=True)
    leftovers.forget(run)


def stay_on_the_loopback() -> None:
    """Have a Ray, which is yet to be imported, take the loopback for this machine's address."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


class LocalRay:
    """Starts a Ray, which is yet to be imported, with its files in a folder.

    It ends with the thread that starts it, on Linux, or else soon afterwards; `stop` ends it in order.
    """

    def __init__(self, folder: str) -> None:
        self._cluster: Any = None
        stay_on_the_loopback()
        os.environ.update(
            RAY_TMPDIR=folder,
            RAY_enable_worker_prestart="0",
            RAY_raylet_start_wait_time_s="120",  # a busy machine
        )

    def start(self, nodes: int, gpus: Sequence[str]) -> str:
        """Start nodes which share GPUs, by their names for CUDA; return the address.

        Raises:
            ProcessFailed: they do not start.
        """
        from ray.cluster_utils import Cluster  # noqa: PLC0415

        self._cluster = Cluster(shutdown_at_exit=True)
        visible = os.environ.get(VISIBLE)
        try:
            self._start_nodes(nodes, gpus)
        except Exception as error:  # Ray has very many
            text = str(error).partition("\n")[0]
            raise ProcessFailed(f"no Ray can be started on this machine: {text}") from None
        finally:
            os.environ.pop(VISIBLE, None)
            if visible is not None:
                os.environ[VISIBLE] = visible
        return str(self._cluster.address)

    def _start_nodes(self, nodes: int, gpus: Sequence[str]) -> None:
        rest = list(gpus)
        for index in range(nodes):
            number = -(-len(rest) // (nodes - index))
            own, rest = rest[:number], rest[number:]
            os.environ[VISIBLE] = ",".join(own)  # as Ray reads it, and hands it on
            options: dict[str, Any] = {"_system_config": _NOTICE} if index == 0 else {}
            if nodes > 1:
                options["node_name"] = f"simulated-{index + 1}"
            if index > 0:
                # Each unpacks what is shipped anew, and removes what it finds there: another one's, which runs from it.
                options["runtime_env_dir_name"] = f"runtime_resources_{index + 1}"
            self._cluster.add_node(
                wait=False,
                num_cpus=0,
                num_gpus=len(own),
                object_store_memory=_OBJECT_STORE,
                node_ip_address="127.0.0.1",
                include_dashboard=False,
                no_monitor=True,
                **options,
            )
        self._cluster.wait_for_nodes()

    def stop(self) -> None:
        """End it."""
        if self._cluster is not None:
            self._cluster.shutdown()
