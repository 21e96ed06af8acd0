"""Models in the formats of other libraries, each with what else the library has to be told."""

from crossmae.export.exported import Exported, Target
from crossmae.export.targets import export

__all__ = ["Exported", "Target", "export"]
