"""What GPUs send each other, by hand."""

import pytest

from crossmae.planning.collectives import BUCKET, HOP, REACHED, Ring, data_parallel, sharded

GB = 1e9


def test_one_gpu_sends_nothing():
    alone = Ring(300, 25, 1, 8)
    assert alone.all_reduce(GB) == 0
    assert data_parallel(alone, 10**8, 0.01).total == 0
    assert sharded(alone, 10**8, 10**7, 0.01, 0.02, 2).exposed == 0


def test_two_gpus_send_half_of_it_twice():
    """1 GB over NVLink of an A100, of whose 300 GB/s three quarters are reached."""
    assert REACHED == 0.75
    assert Ring(300, 25, 2, 8).all_reduce(GB) == pytest.approx(2 * (0.5 / 225 + HOP))


def test_a_full_host_of_a100s_reaches_what_nccl_tests_shows():
    """1 GB in 8.2 ms is nccl-tests' algorithm bandwidth of some 130 GB/s, bus bandwidth 230."""
    seconds = Ring(300, 25, 8, 8).all_reduce(GB)
    assert 0.9 < seconds / (2 * 7 / 8 / 230) < 1.1


@pytest.mark.parametrize(("network", "slowest"), [(25, 200), (50, 300), (1.5, 12)])
def test_the_slowest_link_decides(network, slowest):
    """Eight cards of each host together, or NVLink."""
    ring = Ring(300, network, 64, 8)
    assert ring.bandwidth == pytest.approx(REACHED * slowest * GB)
    assert ring.gather(GB) == pytest.approx(63 / 64 / (REACHED * slowest) + 6 * HOP)


def test_gradients_hide_behind_the_backward_pass_but_for_the_last_bucket():
    ring, parameters = Ring(300, 25, 8, 8), 10 * BUCKET // 4
    bucket = ring.all_reduce(BUCKET)
    hidden, late = data_parallel(ring, parameters, 1.0), data_parallel(ring, parameters, 2 * bucket)
    assert hidden.total == late.total == pytest.approx(10 * bucket)
    assert hidden.exposed == pytest.approx(bucket)
    assert late.exposed == pytest.approx(8 * bucket)


def test_a_sharded_model_is_gathered_for_each_pass_of_each_micro_batch():
    ring = Ring(300, 25, 8, 8)
    whole, part = ring.gather(4 * 10**8), ring.gather(4 * 10**7)
    assert sharded(ring, 10**8, 10**7, 1.0, 1.0, 1).total == pytest.approx(3 * whole)
    assert sharded(ring, 10**8, 10**7, 1.0, 1.0, 4).total == pytest.approx(9 * whole)
    # All hidden: the first part of each forward pass is waited for, and the last scatter.
    assert sharded(ring, 10**8, 10**7, 1.0, 1.0, 4).exposed == pytest.approx(5 * part)
    # Nothing to hide behind: all of it.
    assert sharded(ring, 10**8, 10**7, 0.0, 0.0, 4).exposed == pytest.approx(9 * whole)
