"""What the training loop and its data loader do beside a model, from their record alone."""

import json
from pathlib import Path

from tabulate import tabulate


def table(path: Path) -> str:
    """Images per second of the loader alone and in the loop, and the loop's own time for a step, as Markdown."""
    content = json.loads(path.read_text("utf-8"))
    found = {record["name"]: record["extra_info"] for record in content["benchmarks"]}

    def rate(name: str) -> str:
        return f"{found[name]['images per second']:,.0f}" if name in found else ""

    headers = ["workers", "loader alone, images per s", "loop without a model, images per s"]
    rows = [[str(n), rate(f"test_loader[{n}]"), rate(f"test_loop_and_loader[{n}]")] for n in (1, 2)]
    machine = content["machine_info"]["cpu"]
    about = found["test_loader[1]"]
    return (
        f"JPEGs of 500 x 375 pixels and {about['KB per image']:.0f} KB, cropped at random to 224; batch 64; "
        f"{machine['brand_raw']}, {machine['count']} cores; torch {about['torch']}; "
        f"commit {content['commit_info']['id'][:10]}; {content['datetime'][:10]}\n\n"
        f"{tabulate(rows, headers, tablefmt='github', disable_numparse=True)}\n\n"
        f"With batches at hand the loop itself takes {found['test_step_of_the_loop']['milliseconds per step']:.2f} ms "
        "a step: the order of images, the optimizer of one parameter, losses read back, log and curves.\n"
    )
