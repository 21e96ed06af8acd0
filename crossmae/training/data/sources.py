"""Where images come from: what lies under a name or path, found before any work starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossmae.training.data.bundled import BUNDLED, bundled
from crossmae.training.data.folders import image_files
from crossmae.training.data.shards import expanded, shards
from crossmae.training.data.source import Source


@dataclass(frozen=True)
class Sources:
    """Images to train on, and held-out ones to evaluate on where there are any."""

    training: Source
    evaluation: Source | None = None


def find_sources(where: str, evaluation: str | None = None) -> Sources:
    """What there is under a name or path.

    - the name of a bundled set, "digits" or "photographs", each with a part held out;
    - a folder with ``train`` and ``val`` in it, as of ImageNet;
    - WebDataset shards: a .tar file, a folder of them, or a pattern such as ``shards/train-{000..012}.tar`` with braces
      and wildcards;
    - any other folder: the images in it and below it. If all lie in subfolders, two or more, these are the classes.

    Args:
        where: see above.
        evaluation: the same for held-out images, instead of those that belong to ``where``.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError, ValueError: if there is nothing to read.
    """
    found = Sources(*bundled(where)) if where in BUNDLED else _at_path(where)
    if evaluation is None:
        return found
    if evaluation in BUNDLED:
        return Sources(found.training, bundled(evaluation)[1])
    other = _at_path(evaluation, found.training.classes)
    return Sources(found.training, other.evaluation or other.training)


def _at_path(where: str, classes: Sequence[str] | None = None) -> Sources:
    path = Path(where)
    if not path.exists() and any(character in where for character in "{*?["):
        return Sources(shards(expanded(where)))
    known = f"a folder of images, .tar shards or a bundled set ({', '.join(BUNDLED)})"
    if not where or not path.exists():
        raise FileNotFoundError(f"there is no {where!r}; {known} is needed")
    if path.is_file():
        if path.suffix.lower() != ".tar":
            raise NotADirectoryError(f"{path} is a file; {known} is needed")
        return Sources(shards([path]))
    if (path / "train").is_dir() and (path / "val").is_dir():
        training = _in_folder(path / "train", classes)
        return Sources(training, _in_folder(path / "val", training.classes))
    return Sources(_in_folder(path, classes))


def _in_folder(folder: Path, classes: Sequence[str] | None) -> Source:
    tars = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".tar" and path.is_file())
    return shards(tars) if tars else image_files(folder, classes)
