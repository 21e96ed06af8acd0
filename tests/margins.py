"""How near does anything come to its error budget? ``python tests/margins.py``, or ``make margins``.

Runs every test that judges by the budget with many seeds, once for each set of instructions that oneDNN and ATen may
use on this CPU, each in a process of its own. Prints for each the smallest margin of the kernels, 1 - error / allowed,
and by how much the kernels that are broken on purpose exceed their budgets at least. Exits with 1 if a test failed.
Some minutes per seed and setting; ``--select`` takes an expression as ``pytest -k`` does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def settings():
    """Variables by name; a CPU without some of oneDNN's sets takes the next best by itself."""
    one_dnn = ("SSE41", "AVX2", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX")
    yield "default", {}
    for name in one_dnn:
        yield f"oneDNN {name}", {"ONEDNN_MAX_CPU_ISA": name}
    # ATen takes these at their word, so only what this CPU has.
    best = torch.backends.cpu.get_cpu_capability()
    for name in ("default", "avx2", "avx512"):
        if name == "default" or best == "AVX512" or name.upper() == best:
            yield f"ATen {name}", {"ATEN_CPU_CAPABILITY": name}
    yield "oneDNN AVX2, ATen avx2", {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def run(variables, seeds, select, folder):
    """The end of pytest's output, its exit code and all verdicts."""
    file = Path(tempfile.mkstemp(dir=folder)[1])
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "budget", "tests"]
    command += [f"--seeds={seeds}", f"--verdicts={file}", *(["-k", select] if select else [])]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout[-4000:], done.returncode, [json.loads(line) for line in file.read_text().splitlines()]


def row(verdicts):
    """How many were judged, the smallest margin and the smallest excess, each with its place."""
    kernels = [verdict for verdict in verdicts if not verdict["broken"]]
    broken = [verdict for verdict in verdicts if verdict["broken"]]
    text = f"{len(kernels):6} verdicts"
    if kernels:
        worst = max(kernels, key=lambda verdict: verdict["share"])
        text += f", smallest margin {1 - worst['share']:.3f}\n    {worst['verdict']}\n    {worst['test']}"
    if broken:
        least = min(broken, key=lambda verdict: verdict["share"])
        text += f"\n{len(broken):6} of broken kernels, {least['share']:.1f} times the budget at least"
        text += f"\n    {least['verdict']}\n    {least['test']}"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--select", help="which tests, as for pytest -k")
    parser.add_argument("--settings", help="only those whose names contain this, such as AVX2")
    options = parser.parse_args()
    chosen = {name: env for name, env in settings() if (options.settings or "") in name}
    failed = False
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        runs = pool.map(lambda env: run(env, options.seeds, options.select, folder), chosen.values())
        for name, (output, code, verdicts) in zip(chosen, runs, strict=True):
            print(f"{name:24}{row(verdicts)}", flush=True)
            if code:
                failed = True
                print(output, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
