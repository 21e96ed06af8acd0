"""Programs that stay: what they share, what they read, what they refuse."""

import pytest
import torch

from crossmae_kernels.primitives.tiles import persistent_candidates, persistent_refusals, persistent_tiles
from crossmae_kernels.runtime import device as device_module
from crossmae_kernels.runtime.device import Limits

HOPPER, BLACKWELL = Limits(90, 227 * 1024, 132), Limits(100, 227 * 1024, 148)


def drawn(*shape):
    """Multiples of 1/32 up to 1, whose products sum up exactly in any order: libraries choose it by shape and CPU."""
    return torch.randint(-32, 33, shape, generator=torch.Generator().manual_seed(0)).half() / 32


def test_the_number_of_programs_changes_nothing(device, monkeypatch):
    """13 tiles, one after the other, by two programs, by six and by one each, summed as in `gemm`."""
    if device != "cpu":
        pytest.skip("a device has the multiprocessors that it has")
    from crossmae_kernels.primitives.gemm import gemm
    from crossmae_kernels.primitives.persistent_gemm import persistent_gemm

    a, weight, residual = drawn(13 * 128 - 5, 80), drawn(40, 80), drawn(13 * 128 - 5, 40)
    right = gemm(a, weight, None, residual=residual)
    for multiprocessors in (1, 3, 132):
        monkeypatch.setattr(device_module, "INTERPRETER", Limits(90, 227 * 1024, multiprocessors))
        assert torch.equal(persistent_gemm(a, weight, None, residual=residual), right)


def test_rows_beyond_2_to_the_31_are_found(device):
    """The memory between the rows is reserved but never touched."""
    from crossmae_kernels.primitives.persistent_gemm import persistent_gemm

    a, weight = drawn(3, 16).to(device), drawn(3, 16).to(device)
    memory = torch.empty(2 * 2**30 + 16, dtype=torch.float16, device=device)
    far = memory.as_strided((3, 16), (2**30, 1)).copy_(weight)
    assert torch.equal(persistent_gemm(a, far, None), persistent_gemm(a, weight, None))


def test_a_weight_of_any_strides_is_multiplied(device):
    from crossmae_kernels.primitives.persistent_gemm import persistent_gemm

    a, weight = drawn(5, 16).to(device), drawn(16, 24).to(device)
    assert torch.equal(persistent_gemm(a, weight.t(), None), persistent_gemm(a, weight.t().contiguous(), None))


@pytest.mark.parametrize(
    ("dtype", "limits", "rows", "matrix", "widths", "reason"),
    [
        (
            torch.float32,
            HOPPER,
            1,
            torch.empty(2, 16),
            (),
            "it computes in 16 bits, but these operands are",
        ),
        (torch.float16, Limits(80, 163 * 1024, 108), 1, drawn(2, 16), (), "this device has 8.0"),
        (torch.float16, Limits(120, 99 * 1024, 170), 1, drawn(2, 16), (), "this device has 12.0"),
        (torch.float16, HOPPER, 2**30, drawn(2, 16), (), "it supports fewer than 2^30 rows, but these are 1073741824"),
        (torch.float16, HOPPER, 1, drawn(2, 24)[:, 1:17], (), "these are 48 bytes apart from byte 2 on"),
        (torch.float16, HOPPER, 1, drawn(2, 20), (), "these are 40 bytes apart from byte 0 on"),
        (torch.float16, HOPPER, 1, drawn(20, 2).t(), (), "these are 40 bytes apart from byte 0 on"),
        (torch.float16, HOPPER, 1, drawn(1, 16).expand(2, 16), (), "these are 0 bytes apart from byte 0 on"),
        (torch.float16, HOPPER, 1, drawn(2, 16), (16, 35), "these have 35 elements"),
        (torch.float16, HOPPER, 1, drawn(2, 0), (), "these are 2 bytes apart from byte 0 on"),
    ],
)
def test_what_descriptors_cannot_say_is_refused(dtype, limits, rows, matrix, widths, reason):
    (found,) = persistent_refusals(dtype, limits, rows, (matrix,), widths)
    assert reason in found


def test_what_descriptors_can_say_is_not_refused():
    for matrix in (drawn(2, 16), drawn(16, 2).t(), drawn(4, 24)[::2, 8:], drawn(2, 1).expand(2, 16)):
        assert persistent_refusals(torch.float16, HOPPER, 2**30 - 1, (matrix,), (8, 200)) == []


def test_two_programs_share_a_multiprocessor_where_warps_are_not_specialised():
    assert (persistent_tiles(512, True, HOPPER).programs, persistent_tiles(512, True, HOPPER).specialized) == (2, False)
    assert (persistent_tiles(512, True, BLACKWELL).programs, persistent_tiles(512, False, BLACKWELL).programs) == (2, 1)
    for choice in persistent_candidates(512, False, BLACKWELL):
        assert (choice.specialized, choice.programs) == (True, 1)
