"""How near does anything come to its error budget? ``python tests/margins.py``, or ``make margins``.

Runs every test that judges by the budget with many seeds, once for each set of instructions that oneDNN, ATen, OpenBLAS
and NumPy may use on this CPU; seed after seed, each with a setting in a process of its own. Prints for each setting the
smallest margin of the kernels, 1 - error / allowed, and by how much the kernels that are broken on purpose exceed their
budgets at least. Exits with 1 if a test failed. Some minutes per seed and setting; what passed lies in ``--out`` and is
not run again.
``--select`` takes an expression as ``pytest -k`` does.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

ROOT = Path(__file__).parents[1]


# oneDNN's sets of instructions in their order, with one that a CPU must have for each (``torch.cpu.get_capabilities``).
ONE_DNN = {
    "SSE41": "sse4_1",
    "AVX2": "avx2",
    "AVX2_VNNI_2": "avx_ne_convert",
    "AVX512_CORE": "avx512_bw",
    "AVX512_CORE_BF16": "avx512_bf16",
    "AVX512_CORE_FP16": "avx512_fp16",
    "AVX512_CORE_AMX": "amx_bf16",
}
# Of OpenBLAS, which the interpreter's products come from, in the order of preference; it names sets by a CPU of theirs.
OPEN_BLAS = {"Nehalem": "sse4_1", "Haswell": "avx2", "SkylakeX": "avx512_bw"}


def settings():
    """Variables by name, of what this CPU has; the best of them is what it takes by itself."""
    here = torch.cpu.get_capabilities()
    one_dnn = [name for name, needed in ONE_DNN.items() if here.get(needed)]
    best = torch.backends.cpu.get_cpu_capability().lower()
    aten = {"avx512": ["default", "avx2"], "avx2": ["default"]}.get(best, [])
    yield "as it is", {}
    for name in one_dnn[:-1]:
        yield f"oneDNN {name}", {"ONEDNN_MAX_CPU_ISA": name}
    for name in aten:
        yield f"ATen {name}", {"ATEN_CPU_CAPABILITY": name}
    for name, needed in OPEN_BLAS.items():
        if here.get(needed):
            yield f"OpenBLAS {name}", {"OPENBLAS_CORETYPE": name}
    beyond_least = " ".join(name for name in __cpu_dispatch__ if __cpu_features__[name])
    yield "NumPy's least", {"NPY_DISABLE_CPU_FEATURES": beyond_least}
    if best == "avx512":
        yield "oneDNN AVX2, ATen avx2", {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def run(variables, seed, select, file):
    """The end of what one seed's tests printed, its exit code and all verdicts; if it passed, ``file`` has these."""
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text("")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "budget", "tests"]
    command += [f"--seeds={seed}:{seed + 1}", f"--verdicts={unfinished}", *(["-k", select] if select else [])]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode == 0:
        unfinished.rename(file)
    return done.stdout[-4000:], done.returncode, verdicts_in(unfinished if done.returncode else file)


def verdicts_in(file):
    """What tests wrote down, a verdict a line."""
    return [json.loads(line) for line in file.read_text().splitlines()]


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
    parser.add_argument("--settings", nargs="+", default=[""], help="only those whose names contain this, such as AVX2")
    parser.add_argument("--out", type=Path, default=Path("margins"), help="folder of verdicts, one for each selection")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = {name: env for name, env in settings() if any(part in name for part in options.settings)}
    verdicts, failed = {name: [] for name in chosen}, False
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = {}
        for seed, name in itertools.product(range(options.seeds), chosen):
            file = options.out / f"{name}, seed {seed}.jsonl"
            if file.exists():
                verdicts[name] += verdicts_in(file)
            else:
                runs[pool.submit(run, chosen[name], seed, options.select, file)] = name, seed
        for done in as_completed(runs):
            (name, seed), (output, code, found) = runs[done], done.result()
            verdicts[name] += found
            print(f"{name}, seed {seed}:{row(found)}", flush=True)
            if code:
                failed = True
                print(output, flush=True)
    for name, found in verdicts.items():
        print(f"{name}, {options.seeds} seeds:{row(found)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
