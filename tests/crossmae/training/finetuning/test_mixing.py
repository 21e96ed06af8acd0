"""Mixed images and their targets, by their formulas."""

import random

import numpy as np
import pytest
import torch
from finetuning import tuned

from crossmae.training.data.augmentation import Augmentation
from crossmae.training.finetuning.mixing import Mixing

CLASSES, SMOOTHING = 7, 0.1
LABELS = torch.tensor([0, 1, 2, 3, 4, 5])


def mixed(seed=0, images=None, **settings):
    """Images of one value each, 0 to 5, mixed, and their targets."""
    torch.manual_seed(seed)
    values = torch.arange(6.0)[:, None, None, None].expand(6, 3, 16, 16).clone() if images is None else images
    settings = {"mixup": 0.0, "cutmix": 0.0, "erasing": 0.0, **settings}
    return Mixing(tuned(label_smoothing=SMOOTHING, **settings), CLASSES)(values, LABELS)


def target(share):
    """Of each image, ``share`` of its own class and the rest of its partner's, both smoothed."""
    smooth = torch.full((6, CLASSES), SMOOTHING / CLASSES)
    smooth[torch.arange(6), LABELS] += 1 - SMOOTHING
    return share * smooth + (1 - share) * smooth.flip(0)


@pytest.mark.parametrize("seed", range(3))
def test_mixup(seed):
    images, targets = mixed(seed, mixup=0.8)
    share = float(1 - images[0, 0, 0, 0] / 5)  # image 0 is mixed with image 5
    assert 0 < share < 1
    expected = (share * torch.arange(6.0) + (1 - share) * torch.arange(6.0).flip(0))[:, None, None, None]
    torch.testing.assert_close(images, expected.expand_as(images))
    torch.testing.assert_close(targets, target(share), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_cutmix(seed):
    images, targets = mixed(seed, cutmix=1.0)
    own = images == torch.arange(6.0)[:, None, None, None]
    assert torch.equal(images[~own], (5 - torch.arange(6.0))[:, None, None, None].expand_as(images)[~own])
    rows, columns = (~own[0, 0]).any(1).sum(), (~own[0, 0]).any(0).sum()
    assert (~own[0, 0]).sum() == rows * columns  # a rectangle
    torch.testing.assert_close(targets, target(float(own.double().mean())))


def test_without_either_targets_are_smoothed_alone():
    images, targets = mixed()
    assert torch.equal(images[:, 0, 0, 0], torch.arange(6.0))
    torch.testing.assert_close(targets, target(1.0))
    logits = torch.randn(6, CLASSES)
    loss = torch.nn.functional.cross_entropy(logits, LABELS, label_smoothing=SMOOTHING)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, targets), loss)


def test_both_alternate():
    kinds = {len(mixed(seed, mixup=0.8, cutmix=1.0)[0][0].unique()) for seed in range(8)}
    assert kinds == {1, 2}  # of one value where mixed, of two where cut


def test_erasing_makes_noise_of_rectangles():
    images, _ = mixed(images=torch.full((6, 3, 64, 64), 9.0), erasing=0.999)
    erased = images != 9
    assert (erased.flatten(1).any(1)).all()
    for image in erased[:, 0]:
        assert image.sum() == image.any(1).sum() * image.any(0).sum()
        assert 0.01 < image.double().mean() < 0.4  # 2 to 33 % of the area
    noise = images[erased]
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1


def test_pytorchs_generator_decides_and_no_other_is_touched():
    def draw():
        return random.random(), float(np.random.random())  # noqa: NPY002

    settings = {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.5}
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    undisturbed = [draw(), draw()]
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    first, drawn = mixed(1, **settings), [draw()]
    again, other = mixed(1, **settings), mixed(2, **settings)
    assert [*drawn, draw()] == undisturbed
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


def test_randaugment_follows_pytorchs_generator_too():
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    change = Augmentation((32, 32), None, False, "rand-m9-mstd0.5-inc1")
    plain = Augmentation((32, 32), None, False)(image)
    results = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(seed)
        results.append(change(image))
    assert all(result.shape == (3, 32, 32) and result.dtype == torch.uint8 for result in results)
    assert torch.equal(results[0], results[1])
    assert len({result.numpy().tobytes() for result in results}) > 2
    assert any(not torch.equal(result, plain) for result in results)
    with pytest.raises(ValueError, match=r"data\.randaugment must be like"):
        Augmentation((32, 32), None, False, "autumn")
