"""Computing rows on a Ray cluster: the same function, configs and rows as the local engine, on many machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..checks import pip_install
from .workers import Engine, attempt

__all__ = ["connect", "ray_engine"]

_RETRIES = 5  # of a config whose worker or machine died; what the config itself raises is not tried again


def connect(address: str | None = None) -> Engine:
    """Join a Ray cluster, or start one on this machine, and return its engine.

    Every machine of the cluster needs this package installed.

    Args:
        address: As :func:`ray.init` takes it (``"auto"``, ``"host:port"``); None starts a cluster here.

    Returns:
        An engine for :func:`analysis.lab.sweep.run`.

    Raises:
        ValueError: If ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"engine ray needs ray: {pip_install('ray')}.") from error
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    return ray_engine


def ray_engine(
    function: Callable[[Any], Mapping[str, Any]],
    configs: Sequence[Any],
    size: int,
    enough: Callable[[], bool],
    take: Callable[[Any], bool] = lambda config: True,
) -> Iterator[tuple[Any, dict[str, Any], str | None]]:
    """Yield (config, row, error) in the order of finishing, from one core of the cluster for each config under way.

    Rows come back to this process, which alone writes. A config whose machine is lost is computed again elsewhere.
    The arguments are those of :func:`~analysis.lab.workers.local_engine`, but that ``size`` has no effect: the
    cluster's cores count, also those that join later.
    """
    import ray  # pyright: ignore[reportMissingImports]
    from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

    compute = ray.remote(_one_thread).options(num_cpus=1, max_retries=_RETRIES)
    waiting, running = list(reversed(configs)), dict[Any, Any]()
    shared = ray.put(function)
    try:
        while waiting or running:
            # twice the cores, so that none waits for this process
            while waiting and not enough() and len(running) < 2 * ray.cluster_resources().get("CPU", 1):
                if take(config := waiting.pop()):
                    running[compute.remote(shared, config)] = config
            if not running:
                return
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            config = running.pop(ready)
            try:
                row, error = ray.get(ready)
            except RayError as lost:
                row, error = {}, f"lost on the cluster after {_RETRIES} retries: {lost}"
            yield config, row, error
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _one_thread(function: Callable[[Any], Mapping[str, Any]], config: Any) -> tuple[dict[str, Any], str | None]:
    import torch

    torch.set_num_threads(1)
    return attempt(function, config)
