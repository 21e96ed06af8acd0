"""``crossmae convert``: write a checkpoint in another library's format, with notes on using it there."""

from pathlib import Path
from typing import Any

from crossmae.commands.loading import load_aloud
from crossmae.export import Target, export
from crossmae.export.exported import require_place


def run(source: str, destination: str, to: Target, load_options: dict[str, Any]) -> None:
    """Load, export, save and report; the arguments are those of ``crossmae.commands.cli.convert``."""
    require_place(to, destination)
    if Path(destination).exists():
        raise FileExistsError(f"{destination} exists and is not overwritten; choose another name")
    exported = export(load_aloud(source, load_options), to)
    exported.save(destination)
    for note in exported.notes:
        print(f"- {note}")
    size = sum(tensor.nbytes for tensor in exported.state.values())
    print(f"Written for {to}: {destination}, {len(exported.state)} tensors, {size / 1e6:,.1f} MB")
