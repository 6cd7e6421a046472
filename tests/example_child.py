"""A child for the tests of kaas.children: says who it is, then does what its config says."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from kaas.forkserver import Config


def preload(config: Config) -> None:
    if "fail" in config:
        raise RuntimeError(config["fail"])
    if "exit" in config:
        os._exit(config["exit"])
    if "gate" in config:
        while not Path(config["gate"]).exists():
            time.sleep(0.005)
    if config.get("forks slowly"):
        os.register_at_fork(after_in_parent=lambda: time.sleep(0.5))
    if config.get("speaks late"):
        os.register_at_fork(after_in_child=lambda: time.sleep(0.3))


def clean_up(config: Config) -> None:
    """Leave nothing behind."""


def run(link: socket.socket, config: Config) -> int:
    link.sendall(str(os.getpid()).encode())
    if config["do"] == "raise":
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - what it raises is no news here
        raise RuntimeError("told to")
    if config["do"] == "fork":  # the grandchild has our link, too, and stays
        pid = os.fork()
        if not pid:
            signal.pause()
        link.recv(1)
        link.sendall(str(pid).encode())
        config = {"do": "0"}
    if config["do"] == "stay":  # deaf to the end of its link
        while True:
            signal.pause()
    if config["do"] == "say":  # to the terminal as well
        link.recv(1)
        print("hello", file=sys.stderr, flush=True)
        link.sendall(b"hello")
        config = {"do": "0"}
    while link.recv(100):
        pass
    return int(config["do"])
