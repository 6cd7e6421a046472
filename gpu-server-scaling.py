#!/usr/bin/env python3
"""The KaaS server: one kernel, worker processes on every GPU, the next GPU booted when all workers are busy.

Prints event lines (@@@ ...) on stdout and everything else on stderr. SIGTERM or Ctrl-C: answers what is in flight, ends
the workers, and exits with 0; a second one ends it at once. If KAAS_TOKEN is set, clients must show the same token.
"""

import argparse
import logging
import os

from kaas import cli, emulator, kernels, nvidia, outlet, policy, wire
from kaas.errors import UsageError
from kaas.pool.settings import Settings
from kaas.server import listener

MOST_WORKERS = 100_000


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    default = Settings
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("function", metavar="FUNCTION", help="the kernel: a module's name or a path, with or without .py")
    add("-p", "--port", type=cli.port, default=default.port, help="port to listen on; 0 for any (default %(default)s)")
    add(
        "--host",
        default=default.host,
        help="address to listen on (default %(default)s: this machine only); one open to others takes a KAAS_TOKEN",
    )
    add("--insecure", action="store_true", help="listen where others can reach it, and let anybody call the kernel")
    add(
        "-g",
        "--num-gpus",
        type=cli.positive_int,
        metavar="N",
        help="GPUs (default 1; of --ray-address: all that it has)",
    )
    cli.add_ray_options(
        parser, "where the workers are: on this machine, or on the nodes of a Ray cluster", "start a Ray here"
    )
    add(
        "--ray-nodes",
        type=cli.positive_int,
        default=default.ray_nodes,
        metavar="N",
        help="with ray, without an address: start so many simulated nodes on this machine (default %(default)s)",
    )
    add(
        "--mps",
        action="store_true",
        help="with --ray-address: each node's GPUs are held under MPS in exclusive mode, and put back at the end; "
        "SUDO in the environment says how to become root there",
    )
    add(
        "--gpu-ids",
        type=cli.names,
        default=(),
        metavar="UUID,...",
        help="what CUDA calls these GPUs (see nvidia-smi -L); by default those of CUDA_VISIBLE_DEVICES, or all",
    )
    add(
        "-m",
        "--max-req-per-gpu",
        type=cli.positive_int,
        default=default.workers_per_gpu,
        metavar="M",
        help="workers of each GPU, and so its invocations at a time (default %(default)s)",
    )
    add(
        "--message-size",
        type=cli.size,
        default=wire.DEFAULT_LIMIT,
        metavar="BYTES",
        help="the largest payload, either way (default %(default)s)",
    )
    add(
        "--policy",
        choices=policy.NAMES,
        default=default.policy,
        help="where an invocation goes and when a GPU boots: as in the paper; packing, onto the GPU with the most in "
        f"flight; ahead, the next GPU boots when {policy.AHEAD_AT:.0%}% of all places are taken (default %(default)s)",
    )
    add(
        "--when-full",
        choices=("reject", "queue"),
        default=default.when_full,
        help="what becomes of an invocation when all workers are busy (default %(default)s, as in the paper)",
    )
    add(
        "--max-queue",
        type=cli.positive_int,
        default=default.max_queue,
        metavar="N",
        help="with queue: how many may wait, first come first served; more are rejected (default %(default)s)",
    )
    for name, kind, value, help_text in (
        ("queue-timeout", cli.seconds, default.queue_timeout, "with queue: how long one may wait; 0: for ever"),
        ("idle-timeout", cli.seconds, default.idle_timeout, "stop a task runner idle for so long; 0: never"),
        (
            "call-timeout",
            cli.seconds,
            default.call_timeout,
            "answer and replace a worker in a call for so long; 0: never",
        ),
        ("boot-timeout", cli.positive_seconds, default.boot_timeout, "how long a worker may take to become ready"),
        ("drain-timeout", cli.positive_seconds, default.drain_timeout, "at the end, how long to wait for replies"),
        ("kill-after", cli.positive_seconds, default.kill_after, "how long a worker may take to end by itself"),
    ):
        add(f"--{name}", type=kind, default=value, metavar="SECONDS", help=f"{help_text} (default %(default)g)")
    add(
        "--metrics-port",
        type=cli.port,
        metavar="PORT",
        help="serve Prometheus metrics on this port, 0 for any (default: none); to this machine only unless --insecure",
    )
    cli.add_supervised_option(parser)
    add(
        "--check", action="store_true", help="only check the arguments, the kernel's file and the port, and say nothing"
    )
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default %(default)s")
    return parser.parse_args()


def check_engine(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what does not go together; the number of GPUs is 0 where it is for Ray to tell."""
    cli.check_ray_options(arguments)
    if arguments.engine == "local":
        if arguments.ray_nodes > 1:
            raise UsageError("--ray-nodes goes with --engine ray")
    elif arguments.gpu_ids and arguments.ray_address:
        raise UsageError("--gpu-ids are those of this machine: leave out --ray-address, whose Ray gives its nodes' out")
    elif arguments.ray_address and arguments.ray_nodes > 1:
        raise UsageError("--ray-nodes are those of a Ray that is started here: leave out --ray-address")
    if arguments.mps and not arguments.ray_address:
        raise UsageError("--mps goes with --ray-address: on this machine, scripts/gpu_guard.py holds the GPUs")
    if not arguments.num_gpus:
        arguments.num_gpus = 0 if arguments.ray_address else 1
    if not arguments.ray_address and arguments.num_gpus < arguments.ray_nodes:
        raise UsageError(f"--ray-nodes {arguments.ray_nodes} are more than the GPUs (--num-gpus {arguments.num_gpus})")


def main() -> None:
    """Run the server that the command line describes."""
    arguments = parse_arguments()
    logging.basicConfig(
        handlers=[outlet.log_handler()],
        level=arguments.log_level.upper(),
        format="%(asctime)s server %(levelname)s: %(message)s",
    )
    check_engine(arguments)
    if arguments.num_gpus * arguments.max_req_per_gpu > MOST_WORKERS:
        raise UsageError(f"{arguments.num_gpus} GPUs x {arguments.max_req_per_gpu} workers are over {MOST_WORKERS}")
    if arguments.gpu_ids and len(arguments.gpu_ids) < arguments.num_gpus:
        raise UsageError(f"--gpu-ids names {len(arguments.gpu_ids)} GPUs, but --num-gpus says {arguments.num_gpus}")
    kernel = kernels.find(arguments.function)
    kernels.check(kernel, kernels.KERNEL_FUNCTION)
    gpu_ids = arguments.gpu_ids
    if not (gpu_ids or arguments.check or arguments.ray_address):
        gpu_ids, note = nvidia.for_workers(arguments.num_gpus)
        if note:
            logging.getLogger("kaas.server").warning("%s", note)
    settings = Settings(
        kernel=kernel,
        host=arguments.host,
        port=arguments.port,
        token=os.environ.pop("KAAS_TOKEN", ""),  # out of the environment that the kernel's processes inherit
        gpus=arguments.num_gpus,
        gpu_ids=gpu_ids,
        workers_per_gpu=arguments.max_req_per_gpu,
        message_size=arguments.message_size,
        policy=arguments.policy,
        when_full=arguments.when_full,
        max_queue=arguments.max_queue,
        queue_timeout=arguments.queue_timeout,
        idle_timeout=arguments.idle_timeout,
        boot_timeout=arguments.boot_timeout,
        call_timeout=arguments.call_timeout,
        drain_timeout=arguments.drain_timeout,
        kill_after=arguments.kill_after,
        supervised=arguments.supervised,
        metrics_port=arguments.metrics_port,
        insecure=arguments.insecure,
        engine=arguments.engine,
        ray_address=arguments.ray_address,
        ray_nodes=arguments.ray_nodes,
        link_host=arguments.link_host,
        link_port=arguments.link_port,
        mps=os.environ.get("SUDO", "") if arguments.mps else None,
    )
    if arguments.check:
        listener.check(settings)
        return
    if emulated := emulator.mark():
        logging.getLogger("kaas.server").info("%s: nothing of this run is measured", emulated)
    from kaas.server import tcp  # noqa: PLC0415 - a check, or --help, has its answer before all that is imported

    tcp.serve(settings)


if __name__ == "__main__":
    cli.run(main, cli.at_once)
