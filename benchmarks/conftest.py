"""Options of the benchmarks, and what their records say of the machine."""

from typing import Any

import pytest
import torch

from benchmarks.contest import FORMS
from benchmarks.suites import SUITES
from crossmae.benchmark.machine import machine


def pytest_addoption(parser: pytest.Parser) -> None:
    """What is measured, until when, and where it is written down beside pytest-benchmark's own record."""
    default = "short" if torch.cuda.is_available() else "small"
    group = parser.getgroup("crossmae")
    group.addoption("--form", choices=FORMS, default=default, help="how large problems are (here: %(default)s)")
    group.addoption("--suite", choices=SUITES, action="append", help="this one; may be repeated (all)")
    group.addoption("--record", metavar="FOLDER", help="add to this record, and measure only what it lacks")
    group.addoption("--until", type=float, default=float("inf"), help="begin nothing after this time, in s since 1970")


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Contests cannot be written as JSON; benchmarks have their names."""
    for benchmark in output_json["benchmarks"]:
        benchmark["params"] = None


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Records are published, without the host's name."""
    machine_info.pop("node", None)
    machine_info |= machine(FORMS[config.option.form].device)
