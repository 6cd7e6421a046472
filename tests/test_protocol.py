"""docs/protocol.md: its example is what we send, its tables are kaas/wire.py's, and its client works."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import LIMIT, Server, StartServer

from kaas import ROOT, wire

TEXT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
NODE = shutil.which("node")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_bytes_of_the_example_are_those_that_are_sent() -> None:
    request, reply = map(bytes.fromhex, blocks(""))
    assert request == wire.encode_request(wire.Request(wire.INVOKE, b"hello", 7, 30.0))
    (decoded,) = wire.reply_decoder().feed(reply)
    assert decoded == wire.Reply("ok", b"olleh", 7, True, True, 0, 0, 412_000_000, 21_000)


def test_every_status_is_told_by_its_number() -> None:
    told = re.findall(r"^\| (\d) \| `(\w+)` \|", TEXT, re.MULTILINE)
    assert told == [(str(number), name) for number, name in enumerate(wire.STATUSES)]


@pytest.mark.parametrize("header", ["_REQUEST", "_REPLY"])
def test_the_fields_of_each_header_leave_no_gap(header: str) -> None:
    _, request, reply = re.split("^## Re(?:quest|ply)", TEXT, flags=re.MULTILINE)[:3]
    fields = re.findall(r"^\| (\d+) \| (\d) \|", request if header == "_REQUEST" else reply, re.MULTILINE)
    end = 0
    for offset, size in fields:
        assert int(offset) == end
        end += int(size)
    assert end == getattr(wire, header).size


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
def test_the_client_in_another_language_gets_its_answers(start_server: StartServer, tmp_path: Path) -> None:
    def call(server: Server, text: str, token: str = "") -> "subprocess.CompletedProcess[str]":
        assert NODE is not None
        return subprocess.run(
            [NODE, str(program), *server.address.split(":"), text],
            env=os.environ | {"KAAS_TOKEN": token},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    (code,) = blocks("js")
    program = tmp_path / "client.mjs"
    program.write_text(code, encoding="utf-8")
    server = start_server("echo", "-m", "1", KAAS_TOKEN="secret")
    served = call(server, "héllo", token="secret")
    assert (served.returncode, served.stdout, served.stderr) == (0, "ok on GPU 0 héllo\n", "")
    refused = call(server, "hello", token="wrong")
    assert refused.returncode == 1
    assert refused.stdout.startswith("unauthorized on GPU -1")
