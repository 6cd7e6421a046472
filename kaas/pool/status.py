"""How the pool stands, as the status query's answer says it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kaas.pool.pool import Pool


def status(pool: "Pool") -> dict[str, Any]:
    """Say how the pool stands."""
    settings = pool.settings
    engine = pool.about_engine() or {"name": "local", "here": True}
    return {
        "in_flight": len(pool.invocations),
        "task_runners": len(pool.runners),
        "queued": len(pool.invocations.waiting),
        "workers": [
            {"worker": slot.number, "gpu": gpu, "pid": slot.pid, "state": slot.state}
            for gpu, runner in sorted(pool.runners.items())
            for slot in runner.slots.values()
        ],
        "counters": dict(pool.account),
        "by_gpu": [_status_of(gpu, pool) for gpu in range(pool.placement.gpus)],
        "gpus": pool.placement.gpus,
        "engine": engine,
        "workers_per_gpu": settings.workers_per_gpu,
        "kernel": settings.kernel.name,
        "draining": pool.draining,
        "settings": {
            "Policy": settings.policy,
            "When full": settings.when_full,
            "Idle timeout [s]": settings.idle_timeout,
            "Call timeout [s]": settings.call_timeout,
            "Message size [bytes]": settings.message_size,
            "Kernel file": str(settings.kernel),
            "Engine": engine["name"],
            **({"Nodes": engine["text"]} if "text" in engine else {}),
        },
    }


def _status_of(gpu: int, pool: "Pool") -> dict[str, Any]:
    booted = gpu in pool.runners
    return {
        "gpu": gpu,
        "booted": booted,
        "in_flight": pool.placement.in_flight(gpu) if booted else 0,
        "workers": len(pool.placement.workers(gpu)),
        "lost": pool.lost_workers[gpu],
        "cold_starts": pool.cold_starts[gpu],
        **({"node": pool.nodes[gpu]} if gpu in pool.nodes else {}),
    }
