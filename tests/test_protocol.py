"""docs/protocol.md: its example is what we send, its headers are those of kaas/wire.py, and its client works."""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from support import LIMIT, Server, StartServer, listening_socket

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


def test_the_fields_of_both_headers_are_those_of_the_code() -> None:
    told, coded = (
        re.findall(r"^\| (\d+) +\| (\d) +\| (\w*)", text, re.MULTILINE) for text in (TEXT, wire.__doc__ or "")
    )
    assert told == [(offset, size, name or "reserved") for offset, size, name in coded]


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
def test_the_client_in_another_language_gets_its_answers(start_server: StartServer, tmp_path: Path) -> None:
    def call(
        server: Server, text: str, token: str = "", at: Iterable[object] = ()
    ) -> "subprocess.CompletedProcess[str]":
        assert NODE is not None
        return subprocess.run(
            [NODE, str(program), *map(str, at or server.address.split(":")), text],
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
    with listening_socket() as deaf:

        def hang_up() -> None:
            deaf.accept()[0].close()

        gone = threading.Thread(target=hang_up)
        gone.start()
        unanswered = call(server, "hello", at=deaf.getsockname()[:2])
        gone.join()
    assert (unanswered.returncode, unanswered.stdout) == (1, "")
    assert len(unanswered.stderr.splitlines()) == 1
    refused = call(server, "hello", token="wrong")
    assert refused.returncode == 1
    assert refused.stdout.startswith("unauthorized on GPU -1")
