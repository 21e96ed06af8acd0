"""The order of images: complete, repeatable, the same for any number of processes, exact after resuming."""

from itertools import islice

import pytest

from crossmae.training.data.sampling import GlobalBatches


def steps(count, **arguments):
    """Global batches of ``count`` steps, put together from all processes' micro-batches in their order."""
    world, accumulation = arguments.get("world", 1), arguments.get("accumulation", 1)
    parts = [list(islice(GlobalBatches(**arguments | {"rank": rank}), count * accumulation)) for rank in range(world)]
    return [
        [place for part in parts for micro in part[s * accumulation : (s + 1) * accumulation] for place in micro]
        for s in range(count)
    ]


ONE = {"images": 103, "batch_size": 8, "seed": 5}


def test_an_epoch_has_every_image_once_but_for_the_rest():
    epoch = [place for step in steps(12, **ONE) for place in step]
    assert len(epoch) == len(set(epoch)) == 96
    assert {e for e, _ in epoch} == {0}
    assert {i for _, i in epoch} <= set(range(103))
    assert [i for _, i in epoch] != sorted(i for _, i in epoch)


def test_epochs_and_seeds_differ():
    orders = [[i for step in steps(36, **ONE | {"seed": seed}) for _, i in step] for seed in (5, 6)]
    first, second, third = orders[0][:96], orders[0][96:192], orders[0][192:]
    assert len({tuple(o) for o in (first, second, third, orders[1][:96])}) == 4
    assert orders[0] == [i for step in steps(36, **ONE) for _, i in step]
    assert {e for step in steps(36, **ONE)[12:24] for e, _ in step} == {1}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batch_of_one(world, accumulation):
    assert steps(30, world=world, accumulation=accumulation, **ONE) == steps(30, **ONE)
    batches = GlobalBatches(world=world, accumulation=accumulation, **ONE)
    assert batches.micro_batch == 8 // world // accumulation
    assert {len(micro) for micro in islice(batches, 30)} == {batches.micro_batch}


@pytest.mark.parametrize("start", [0, 1, 11, 12, 13, 25])
def test_resuming_goes_on_where_it_was(start):
    whole = steps(30, world=2, accumulation=2, **ONE)
    assert steps(30 - start, world=2, accumulation=2, start_step=start, **ONE) == whole[start:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 104}, "at most the number of images 103, got 104"),
        ({"world": 3}, r"must be divisible by 3 processes x 1 micro-batches, got 8"),
        ({"world": 2, "accumulation": 8}, r"must be divisible by 2 processes x 8 micro-batches, got 8"),
        ({"batch_size": 0}, "must be positive, got 0, 1 and 1"),
        ({"accumulation": 0}, "must be positive, got 8, 1 and 0"),
        ({"rank": 1}, r"rank must be in 0 \.\.\. 0, got 1"),
        ({"start_step": -1}, "start_step must not be negative, got -1"),
    ],
)
def test_wrong_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GlobalBatches(**ONE | change)
