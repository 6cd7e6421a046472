"""A server that is started by hand uses the GPUs that it was given, not somebody else's."""

import json
from pathlib import Path

from project import StandIns
from support import Server, StartServer, eventually


def seen_by_workers(server: Server) -> list[str]:
    """What the first worker of each GPU sees, in the order of the GPUs."""
    with server.frames() as frames:
        for number in (1, 2):
            frames.invoke(b"", number)
        replies = frames.replies(1, 2).values()
    found = {str(reply.gpu): json.loads(reply.payload)["CUDA_VISIBLE_DEVICES"] for reply in replies}
    return [found[gpu] for gpu in sorted(found)]


def start(start_server: StartServer, folder: Path, *arguments: str, visible: str) -> Server:
    nvidia = StandIns(folder / "nvidia", gpus=6)
    environment = nvidia.environment | {"CUDA_VISIBLE_DEVICES": visible}
    return start_server("whoami", "--num-gpus", "2", "--max-req-per-gpu", "1", *arguments, **environment)


def test_it_uses_the_gpus_of_cuda_visible_devices(start_server: StartServer, tmp_path: Path) -> None:
    server = start(start_server, tmp_path, visible="4,5")

    assert seen_by_workers(server) == ["GPU-stand-in-4", "GPU-stand-in-5"]


def test_if_those_are_too_few_it_says_so_and_uses_no_other(start_server: StartServer, tmp_path: Path) -> None:
    server = start(start_server, tmp_path, visible="4")

    assert seen_by_workers(server) == ["GPU-stand-in-4", ""]
    eventually(lambda: "CUDA_VISIBLE_DEVICES=4: it gives 1 of 2 GPUs" in server.stderr())


def test_what_the_command_line_names_comes_first(start_server: StartServer, tmp_path: Path) -> None:
    server = start(start_server, tmp_path, "--gpu-ids", "GPU-a,GPU-b", visible="4,5")

    assert seen_by_workers(server) == ["GPU-a", "GPU-b"]
