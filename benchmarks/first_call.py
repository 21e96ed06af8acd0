"""How long the first call takes: ``python -m benchmarks.first_call FOLDER FORM``.

With nothing compiled before, and with everything; each in a fresh process, imports left out, with caches in a folder of
their own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import records
from benchmarks.measure import planned
from benchmarks.problem import BOTH, Problem, differentiated, form_named, joined
from benchmarks.suites import problems
from crossmae.measure import wait_for_device

CONTENDERS = ("fused", "reference, compiled")


def first_problem(form: str) -> Problem:
    """The smallest of the launch suite."""
    return problems("launch", form_named(form))[0]


def seconds_of_first_call(form: str, contender: str) -> float:
    """A decoder's first forward and backward pass in this process, the device's own start left out."""
    problem, device = first_problem(form), form_named(form).device
    solver = problem.contenders[contender]()
    arguments = problem.draw(problem.batch, 0, device)
    wait_for_device()
    begun = time.perf_counter()
    result = joined(solver(arguments))
    torch.autograd.grad(result, differentiated(solver, arguments), torch.ones_like(result), materialize_grads=True)
    wait_for_device()
    return time.perf_counter() - begun


def main() -> int:
    """Record first calls, cold and warm; with a contender, be one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_call", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("form")
    parser.add_argument("contender", nargs="?")
    options = parser.parse_args()
    if options.contender:
        print(seconds_of_first_call(options.form, options.contender))
        return 0
    failures = 0
    for contender in CONTENDERS:
        with tempfile.TemporaryDirectory() as caches:
            environment = os.environ | {
                name: f"{caches}/{name}" for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
            }
            for state in ("cold", "warm"):
                record = planned((first_problem(options.form), contender, BOTH))
                record.direction, record.date = f"first call, {state}", records.now()
                record.bytes = record.flops = 0
                command = [sys.executable, "-m", __spec__.name, str(options.folder), options.form, contender]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    seconds = float(done.stdout.split()[-1])
                    record.status = records.MEASURED
                    record.times = {"call": {"median": seconds, "p20": seconds, "p80": seconds, "rounds": 1}}
                else:
                    failures += 1
                    record.status, record.reason = records.FAILED, done.stderr.strip()[-300:]
                with records.updating(options.folder) as run:
                    run.put([record])
                print(f"{contender}, {record.direction}: {record.time or record.reason}", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
