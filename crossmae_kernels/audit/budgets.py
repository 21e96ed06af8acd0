"""What each kernel may need, and what grew since: ``python -m crossmae_kernels.audit.budgets [--accept]``.

Figures are those of one version of Triton; with another nothing is compared. ``make audit-accept`` writes them anew.
"""

import argparse
import json
import linecache
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossmae_kernels.command import run_command
from crossmae_kernels.extras import version

if TYPE_CHECKING:
    from crossmae_kernels.audit.cases import Case
    from crossmae_kernels.audit.compilation import Kernel
    from crossmae_kernels.audit.prediction import Prediction

# Nothing is interpreted; Triton reads this when it is imported.
if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

FILE = Path(__file__).with_name("budgets.json")
# The device aimed at first; another would double a file and a test that say much the same.
DEVICE = "h100"
# Of what is a sum over a program; registers and memory are as they are.
SLACK = {"instructions": 1.02, "requested": 1.02, "moved": 1.02, "microseconds": 1.03}
# Source lines that are named where a kernel has more instructions.
MOST_LINES = 3


def figures(kernel: "Kernel", prediction: "Prediction") -> dict[str, Any]:
    """What is compared: registers, instructions, bytes and time, and instructions by source line, as its text."""
    names = [instruction.name for instruction in kernel.code]
    return {
        "registers": kernel.file.registers,
        "spilled": names.count("STL") + names.count("LDL"),
        "shared": kernel.shared,
        "code": len(kernel.code),
        "instructions": round(prediction.instructions),
        "requested": prediction.requested,
        "moved": prediction.moved,
        "microseconds": round(prediction.microseconds, 1),
        "lines": dict(Counter(_text(instruction.line) for instruction in kernel.code)),
    }


def _text(line: str) -> str:
    """``file: text`` of a source line, which stays when lines above it come and go.

    Its number where there is no such file: Triton's cache keeps the paths that it saw first.
    """
    file, _, number = line.rpartition(":")
    if not file:
        return "no line is known"
    return f"{Path(file).name}: {linecache.getline(file, int(number)).strip() or number}"


def growth(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``registers 107 -> 128`` and so on, and which source lines have more instructions than they had."""
    grown = [
        f"{name} {before[name]:,} -> {value:,}"
        for name, value in now.items()
        if name != "lines" and value > before[name] * SLACK.get(name, 1)
    ]
    if grown:
        more = {line: count - before["lines"].get(line, 0) for line, count in now["lines"].items()}
        most = sorted(more.items(), key=lambda item: -item[1])[:MOST_LINES]
        grown += [f"{count} instructions more at {line}" for line, count in most if count > 0]
    return grown


def name_of(case: "Case") -> str:
    """By which a case is found in the file."""
    return f"{case.device.name} {case.dtype} {case.launch.name} {case.label}"


def figures_of(case: "Case") -> dict[str, Any]:
    """Compile and predict a case."""
    from crossmae_kernels.audit.compilation import compile_launch
    from crossmae_kernels.audit.prediction import predict

    kernel = compile_launch(case.launch, case.device.limits.capability)
    return figures(kernel, predict(case.launch, kernel, case.device))


def budgets() -> dict[str, Any]:
    """By name of a case; empty where they are another Triton's."""
    known: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return known["budgets"] if known["triton"] == version("triton") else {}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare every kernel with its budget, or write the budgets."""
    from crossmae_kernels.audit.cases import cases, first_of_each_kernel
    from crossmae_kernels.audit.devices import DEVICES

    parser = argparse.ArgumentParser(prog="python -m crossmae_kernels.audit.budgets", description=__doc__)
    parser.add_argument("--accept", action="store_true", help="write the budgets")
    parser.add_argument("--kernels", nargs="+", help="of these names only")
    options = parser.parse_args(argv)
    chosen = first_of_each_kernel(cases(devices=[DEVICES[DEVICE]], dtypes=["bf16"]))
    known = budgets() if FILE.exists() else {}
    if not known and not options.accept:
        print(f"there are no budgets for triton {version('triton')}; nothing is compared")
        return 0
    failed = False
    for case in chosen:
        if options.kernels and case.launch.name not in options.kernels:
            continue
        name, found = name_of(case), figures_of(case)
        grown = growth(known[name], found) if name in known else ["has no budget; make audit-accept writes one"]
        known[name] = found
        failed = failed or bool(grown)
        print(f"{name}: {'; '.join(grown) or 'ok'}", flush=True)
    if not options.accept:
        return int(failed)
    text = json.dumps({"triton": version("triton"), "budgets": dict(sorted(known.items()))}, indent=1)
    temporary = FILE.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(FILE)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("python -m crossmae_kernels.audit.budgets", main))
