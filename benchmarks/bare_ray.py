"""A Ray that a benchmark measures by itself: calls of an actor that does nothing, and of one behind Ray Serve's HTTP.

A process of its own, `python bare_ray.py FOLDER GPUS`, told by lines what to measure, since who has Ray in it cannot
well fork. It says where its Ray is, which servers may join; then, for each line, the nanoseconds of each call as JSON.
"""

import json
import socket
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

import common

from kaas.cluster.local_ray import LocalRay

PAYLOAD = b"x" * 16


class Nothing:
    """An actor that gives back what it gets."""

    def call(self, payload: bytes) -> bytes:
        """Give it back."""
        return payload

    async def __call__(self, request: Any) -> bytes:
        """Give the body of an HTTP request back."""
        return bytes(await request.body())


def main() -> None:
    """Measure what the lines on stdin say, to their end."""
    ours = LocalRay(sys.argv[1])
    address = ours.start(1, [str(gpu) for gpu in range(int(sys.argv[2]))])
    import ray  # noqa: PLC0415 - it reads its environment when it is imported

    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    actor_class = ray.remote(Nothing).options(num_cpus=0)
    actor = actor_class.remote()
    call: dict[str, Callable[[], object]] = {"actor": lambda: ray.get(actor.call.remote(PAYLOAD))}
    call["cold"] = lambda: ray.get(actor_class.remote().call.remote(PAYLOAD))
    call["actor"]()
    print(address, flush=True)
    for line in sys.stdin:
        what, number = line.split()
        if what == "serve" and "serve" not in call:
            call["serve"] = _serve()
        print(json.dumps(common.times_ns(call[what], int(number))), flush=True)
    if "serve" in call:
        ray.serve.shutdown()
    ray.shutdown()
    ours.stop()


def _serve() -> Callable[[], object]:
    """Have Ray Serve answer HTTP requests; give what sends one."""
    from ray import serve  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(serve.deployment(Nothing).options(ray_actor_options={"num_cpus": 0}).bind(), route_prefix="/")
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", data=PAYLOAD)
    return lambda: urllib.request.urlopen(request).read()


if __name__ == "__main__":
    main()
