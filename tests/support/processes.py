"""Processes that have imported everything before they start, so that tests may start many."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *(
            "crossmae.training.finetuning.run",
            "timm.data.mixup",
            "timm.data.random_erasing",
            "timm.optim",
            "timm.utils",
        ),
        *("crossmae.training.run", "sklearn.datasets", "sklearn.model_selection"),
    ]
)


def start(function: Callable[..., Any], *arguments: Any, environment: dict[str, str] | None = None) -> Any:
    """A process that runs ``function(*arguments)`` on one thread: OpenMP's pools and forks do not mix."""
    process = _context.Process(target=_on_one_thread, args=(function, arguments, environment or {}))
    process.start()
    return process


def run_as_torchrun_would(count: int, function: Callable[..., Any], *arguments: Any) -> list[int]:
    """Exit codes of ``count`` processes with torchrun's environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0, "MASTER_PORT": port}
    common |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
    started = [
        start(
            function,
            *arguments,
            environment={name: str(value) for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()},
        )
        for rank in range(count)
    ]
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def _on_one_thread(function: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)
