"""What the stored records say of the machine."""

from typing import Any


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Records are published: the host's name is nobody's business."""
    machine_info.pop("node", None)
