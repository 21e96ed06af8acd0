"""Export models to other libraries' formats, with notes on anything else the library needs to know."""

from crossmae.export.exported import Exported, Target
from crossmae.export.targets import export

__all__ = ["Exported", "Target", "export"]
