"""What is said about labels before work starts."""

import io
import tarfile

import pytest
import torch
from finetuning import into, tuned
from pictures import encoded, random_pixels
from pretraining import losses

from crossmae.training.data.bundled import ImagesInMemory
from crossmae.training.data.config import DataConfig
from crossmae.training.data.dataset import ImageDataset, Images
from crossmae.training.finetuning.labels import classes_of
from crossmae.training.finetuning.run import finetune, prepare


def dataset(labels, held_out=(0, 1), names=None):
    def images(of):
        pixels = torch.zeros(len(of), 3, 8, 8, dtype=torch.uint8)
        return Images(ImagesInMemory(pixels, torch.tensor(of), names), 3, (8, 8))

    return ImageDataset(images(labels), None, 0, evaluation=None if held_out is None else images(held_out))


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(
        ValueError, match=r"labels: 1 of 5 images have no label; labels skip 1, 3: 2 of 5 classes have no "
    ):
        classes_of(dataset([0, 0, 2, 4, -1]))
    with pytest.raises(ValueError, match=r"held-out images have labels that the training images lack: 2, 7"):
        classes_of(dataset([0, 1], held_out=[0, 2, 7]))
    with pytest.raises(ValueError, match="1 of 2 held-out images have no label"):
        classes_of(dataset([0, 1], held_out=[0, -1]))
    with pytest.raises(ValueError, match="labels must count classes from 0, got 1000000000000 among 3 images"):
        classes_of(dataset([0, 1, 10**12]))
    with pytest.raises(ValueError, match="only one class"):
        classes_of(dataset([0, 0]))
    with pytest.raises(ValueError, match=r"no labelled held-out images to evaluate on; set data\.evaluation"):
        classes_of(dataset([0, 1], held_out=None))


def test_a_class_of_a_single_image_is_told():
    classes = classes_of(dataset([0, 0, 1, 2, 2], names=("cat", "dog", "emu")))
    assert classes.names == ("cat", "dog", "emu")
    assert classes.remark == "1 with only one image: dog"
    assert classes_of(dataset([0, 0, 1, 1])).names == ("0", "1")


def write_shards(folder, other):
    """Images of labels 0 and ``other``."""
    for part, labels in (("train", [0, 0, other, other]), ("val", [0, other])):
        (folder / part).mkdir(exist_ok=True)
        with tarfile.open(folder / part / "0.tar", "w") as tar:
            for number, label in enumerate(labels):
                for name, content in (
                    (f"{number}.png", encoded(random_pixels(number, 12, 12, 3), "PNG")),
                    (f"{number}.cls", str(label).encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def test_shards_train_unless_their_labels_skip_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr("crossmae.training.data.shards.SPAN", 3)
    recipe = tuned(data=DataConfig(str(tmp_path), workers=0), batch_size=2, steps=1)
    write_shards(tmp_path, other=2)
    with pytest.raises(ValueError, match=r"labels skip 1: 1 of 3 classes have no image"):
        prepare(recipe, into(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    write_shards(tmp_path, other=1)
    assert finetune(recipe, into(tmp_path / "run")).classes == ("0", "1")
    assert list(losses(tmp_path / "run")) == [0]


def test_folders_without_classes_are_refused(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encoded(random_pixels(number, 12, 12, 3), "PNG"))
    with pytest.raises(ValueError, match="the images have no labels"):
        prepare(tuned(data=DataConfig(str(tmp_path), workers=0), batch_size=2), into(tmp_path / "run"))
