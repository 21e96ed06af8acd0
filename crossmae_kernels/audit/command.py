"""Compile every kernel for GPUs that are not there, and predict its time: ``python -m crossmae_kernels.audit``.

Exit code 1 if any kernel spills, does not fit, or leaves tensor cores or wide loads unused, or if a device is unknown.
Times are from the machine code alone, and docs/predictions.md says how far they may be off.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from crossmae_kernels.audit.calls import CALLS, DTYPES
from crossmae_kernels.audit.cases import IMAGES, cases, first_of_each_kernel, kernel_names
from crossmae_kernels.audit.compilation import NO_DISASSEMBLER, disassembler
from crossmae_kernels.audit.devices import DEVICES, MI300X, USUAL, AmdDevice, Device
from crossmae_kernels.audit.reports import reports
from crossmae_kernels.command import OneLineParser

_BY_NAME: dict[str, Device | AmdDevice] = {**DEVICES, MI300X.name: MI300X}
_BY_ARCHITECTURE: dict[str, Device | AmdDevice] = {
    **{str(architecture): device for architecture, device in USUAL.items()},
    MI300X.architecture: MI300X,
}


def main(argv: Sequence[str] | None, prog: str) -> int:
    """Print a line for each case, or all as JSON."""
    parser = OneLineParser(prog, __doc__, f"{prog} --short --devices h100")
    parser.add_argument("--ops", nargs="+", choices=list(CALLS), default=[*CALLS])
    parser.add_argument("--kernels", nargs="+", help="of these names only")
    parser.add_argument(
        "--devices", nargs="+", help=f"of {', '.join(_BY_NAME)}; by default one of each of NVIDIA's architectures"
    )
    parser.add_argument(
        "--architectures", nargs="+", help=f"of {', '.join(_BY_ARCHITECTURE)}, each by its usual device"
    )
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), help="by default all")
    parser.add_argument("--batch", type=int, default=IMAGES, help="images; %(default)s unless given")
    parser.add_argument("--short", action="store_true", help="each kernel once, in bfloat16 unless dtypes are given")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one list of records instead of a table")
    options = parser.parse_args(argv)
    for name in ("batch", "processes"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be positive, got {getattr(options, name)}")
    if strangers := sorted({*(options.kernels or ())} - {*kernel_names()}):
        raise ValueError(f"--kernels: there is no {', '.join(strangers)}; there are {', '.join(kernel_names())}")
    devices, unknown = _devices(options.devices, options.architectures)
    partial = any(isinstance(device, Device) for device in devices) and not disassembler()
    for line in [*unknown, f"{NO_DISASSEMBLER}: instructions and times are left out"] if partial else unknown:
        print(f"{prog}: {line}", file=sys.stderr)
    dtypes = options.dtypes or (["bf16"] if options.short else [*DTYPES])
    chosen = cases(options.ops, devices, dtypes, options.batch)
    if options.kernels:
        chosen = [case for case in chosen if case.launch.name in options.kernels]
    if options.short:
        chosen = first_of_each_kernel(chosen)
    if devices and not chosen:
        print(f"{prog}: these ops launch none of these kernels on these devices in these dtypes", file=sys.stderr)
    failed = bool(unknown) or not chosen or partial
    records = []
    for done, record in enumerate(reports(chosen, options.processes), 1):
        records.append(record)
        failed = failed or bool(record["shortcomings"])
        if not options.json:
            print(f"{done}/{len(chosen)}".rjust(10), line_of(record), flush=True)
        elif sys.stderr.isatty():
            print(f"\r{done} of {len(chosen)}", end="" if done < len(chosen) else "\n", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(records))
    return int(failed)


def _devices(
    names: Sequence[str] | None, architectures: Sequence[str] | None
) -> tuple[list[Device | AmdDevice], list[str]]:
    """Those that are known, and a line for each other."""
    if names is None and architectures is None:
        return list(USUAL.values()), []
    asked = [(name, _BY_NAME.get(name.lower()), "device", _BY_NAME) for name in names or ()]
    usual = _BY_ARCHITECTURE
    asked += [(name, usual.get(name.removeprefix("sm_")), "architecture", usual) for name in architectures or ()]
    lines = [
        f"no {kind} {name} is known, of {', '.join(known)}" for name, device, kind, known in asked if device is None
    ]
    return [device for _, device, _, _ in asked if device is not None], lines


def line_of(record: dict[str, Any]) -> str:
    """A row of the table."""
    head = f"{record['device']:9}{record['dtype']:5}{record['kernel']:29}{record['label']:52}"
    verdict = "; ".join(record["shortcomings"]) or "ok"
    if record.get("unknown"):
        verdict += f", data decide at {', '.join(line.rpartition('/')[2] for line in record['unknown'])}"
    if "registers" not in record:
        return f"{head}{verdict}"
    spilled = "?" if record["spilled"] is None else record["spilled"]
    code = f"registers {record['registers']:<4}spilled {spilled:<3}shared {record['shared']:<7}"
    if record["tensor_core"] is not None:
        code += f"{'+'.join(record['tensor_core']) or '-':12}load {record['widest_load']}  "
    if "microseconds" not in record:
        return f"{head}{code}no time: {record['unpredicted']}  {verdict}"
    low, high = record["interval"]
    times = f"{low:,.1f} to {high:,.1f} us"
    moved = f"{record['moved'] / record['floor']:.2f} of tensors" if record["floor"] else "-"
    return f"{head}{code}{record['occupancy']} a multiprocessor  {moved:17}{times:24}{record['limiter']:17}{verdict}"
