"""What is measured, suite by suite; each module has ``problems(form)``."""

import importlib

from benchmarks.problem import Form, Problem

# The most important first.
SUITES = ("decode", "mixing", "attention", "mlp", "step", "projection", "patches", "launch")


def problems(suite: str, form: Form) -> list[Problem]:
    """The problems of a suite."""
    if suite not in SUITES:
        raise ValueError(f"there is no suite {suite!r}, only {', '.join(SUITES)}")
    found: list[Problem] = importlib.import_module(f"benchmarks.suites.{suite}").problems(form)
    return found
