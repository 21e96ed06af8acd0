"""bfloat16 in Triton's interpreter is PyTorch's: casts, arithmetic, constants, reductions and products; its speed."""

import importlib.metadata
import sys
from functools import cache

import pytest
import torch
from seeds import generator

import crossmae_kernels as ck
from crossmae_kernels.runtime.device import machine_refusals
from crossmae_kernels.runtime.interpreter import _bfloat16_refusals, teach

CPU, BFLOAT16 = torch.device("cpu"), torch.bfloat16
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


@pytest.fixture(autouse=True)
def kernels(interpreter):
    teach()
    import bfloat16_kernels

    return bfloat16_kernels


@cache
def every(dtype):
    """All bit patterns of a 16-bit dtype."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def around(dtype):
    """Numbers of a wider dtype that are all of bfloat16's, halfway between two of them, and next to halfway.

    Subnormal ones, infinities and NaNs are among them, and NaNs of which bfloat16 has no bit.
    """
    wide, bits = (torch.int32, 16) if dtype == torch.float32 else (torch.int64, 45)
    below = torch.tensor([0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2 ** (bits - 1) + 1, 2**bits - 1], dtype=wide)
    numbers = every(BFLOAT16).to(dtype).view(wide)
    return (numbers[:, None] + below).view(dtype).flatten()


def whole(dtype):
    """Integers of all sizes, and those halfway between two numbers of bfloat16."""
    info = torch.iinfo(dtype)
    drawn = torch.randint(info.min, info.max, (4096,), generator=generator(), dtype=torch.int64)
    sizes = drawn >> torch.randint(info.bits, (4096,), generator=generator(1))
    halfway = torch.tensor([257, 259, 513, 515, 2**24 + 2**16, 2**24 + 2**16 + 1, 2**40 + 2**32 - 1])
    ends = torch.tensor([info.min, info.max, 0])
    return torch.cat([sizes, halfway[halfway < info.max], ends]).to(dtype)


def same(found, expected):
    """Bit for bit but for NaNs, whose payloads differ between devices too."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.itemsize]
    nan = expected.isnan()
    return torch.equal(found.isnan(), nan) and torch.equal(found[~nan].view(bits), expected[~nan].view(bits))


def converted(kernels, source, dtype):
    size = 2 ** (len(source) - 1).bit_length()
    padded = torch.cat([source, source.new_zeros(size - len(source))])
    target = torch.empty(size, dtype=dtype)
    kernels.cast[(1,)](padded, target, SIZE=size)
    return target[: len(source)]


SOURCES = {
    torch.float16: lambda: every(torch.float16),
    torch.float32: lambda: around(torch.float32),
    torch.float64: lambda: around(torch.float64),
    **{dtype: lambda dtype=dtype: whole(dtype) for dtype in INTEGERS},
}


# What float32 does not hold comes on the way from float64.
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_casts_to_bfloat16(kernels, source):
    numbers = SOURCES[source]()
    assert same(converted(kernels, numbers, BFLOAT16), numbers.to(BFLOAT16))


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("target", [torch.float16, torch.float32, torch.float64, BFLOAT16, *INTEGERS], ids=str)
def test_casts_from_bfloat16(kernels, target):
    numbers = every(BFLOAT16)
    if target in INTEGERS:
        # What an integer cannot hold becomes anything.
        info = torch.iinfo(target)
        numbers = numbers[(numbers > float(info.min) - 1) & (numbers < float(info.max))]
        assert torch.equal(converted(kernels, numbers, target), numbers.to(target))
    else:
        assert same(converted(kernels, numbers, target), numbers.to(target))


def pairs():
    """Numbers of all sizes, the special ones with each other among them; the second are never 0 nor NaN."""
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-40, 3e38, float("inf"), float("-inf")])
    first, second = (t.flatten() for t in torch.meshgrid(special, special[2:], indexing="ij"))
    drawn = every(BFLOAT16)[torch.randint(2**16, (2, 900), generator=generator())]
    drawn[1][(drawn[1] == 0) | drawn[1].isnan()] = 1
    near = torch.randn(1, 64, generator=generator(1)).expand(2, -1).bfloat16()
    return torch.cat([torch.stack([first, second]).bfloat16(), drawn, near], 1)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_arithmetic(kernels):
    a, b = pairs()
    size = 1024 if len(a) < 1024 else 2048
    results = torch.empty(14, size, dtype=BFLOAT16)
    kernels.calculate[(1,)](a, b, results, len(a), SIZE=size)

    def number(value):
        return torch.tensor(value, dtype=BFLOAT16)

    expected = {
        "sum": a + b,
        "difference": a - b,
        "product": a * b,
        "quotient": a / b,
        # Triton 3.6 takes it from 0.
        "negative": torch.where(a == 0, results[4, : len(a)], -a),
        "absolute": a.abs(),
        "minimum": torch.where(a.isnan(), results[6, : len(a)], torch.minimum(a, b)),
        "maximum": torch.where(a.isnan(), results[7, : len(a)], torch.maximum(a, b)),
        "less": torch.where(a < b, a, b),
        "constant": torch.where(a <= b, number(0.1), a),
        "equal": torch.where((a == b) | a.isnan(), number(3.3), a),
        "scaled": a * number(1.3),
        "zeros": torch.zeros_like(a),
        "bits": a,
    }
    for (name, right), found in zip(expected.items(), results, strict=True):
        assert same(found[: len(a)], right), name
    # Of what is masked.
    assert (results[13, len(a) :] == -1.5).all()
    assert (results[0, len(a) :] == -1.5).all()


def test_reductions(kernels):
    numbers = torch.randint(-8, 8, (4, 16), generator=generator()).bfloat16() / 4
    results = torch.empty(3, 4, dtype=BFLOAT16)
    kernels.reduce[(1,)](numbers, results, ROWS=4, SIZE=16)
    assert torch.equal(results, torch.stack([numbers.sum(1), numbers.amax(1), numbers.amin(1)]))


def test_sums_over_either_axis_err_alike(kernels):
    """Of 128 numbers in float32, 1.0e-6 and not the 2.3e-6 of one after another."""
    x = torch.randn(128, 128, generator=generator())
    found = torch.empty(2, 3, 128)
    for values, results in zip((x, x.T.contiguous()), found, strict=True):
        kernels.add_up[(1,)](values, results, 128)
    columns, kept, rows = found[0]
    assert torch.equal(columns, kept)
    assert torch.equal(columns, found[1, 2])
    assert torch.equal(rows, found[1, 0])
    for sums, dimension in ((columns, 0), (rows, 1)):
        assert (sums - x.double().sum(dimension)).square().mean().sqrt() < 1.4e-6


def test_products_are_added_up_in_float32(kernels):
    # 2^8 + 1 needs a bit more than bfloat16 has.
    a, b = (torch.randint(-255, 256, (32, 32), generator=generator(seed)).bfloat16() for seed in (0, 1))
    product = torch.full((32, 32), 0.5)
    kernels.multiply[(1,)](a, b, product, SIZE=32)
    assert torch.equal(product, a.float() @ b.float() + 0.5)


def test_the_language_is_prepared_once_for_each_function_of_a_launch(monkeypatch):
    from gelu_kernel import evaluate
    from triton.runtime import interpreter

    prepare, prepared = interpreter._patch_builtin, []
    monkeypatch.setattr(interpreter, "_patch_builtin", lambda *given: prepared.append(given[0]) or prepare(*given))
    h, counts, found = torch.linspace(-3, 3, 64), [], []
    for block in (64, 16, 16):
        value = torch.empty_like(h)
        evaluate[(64 // block,)](h, value, torch.empty_like(h), h.new_empty(0, dtype=BFLOAT16), 64, BLOCK=block)
        counts.append(len(prepared))
        found.append(value)
    assert counts[0] > 0
    assert counts == [counts[0], 2 * counts[0], 3 * counts[0]]
    assert all(torch.equal(value, found[0]) for value in found)
    torch.testing.assert_close(found[0], torch.nn.functional.gelu(h), rtol=2e-3, atol=1e-3)


X = torch.ones(2, 3, 8, dtype=BFLOAT16)


@pytest.fixture
def asked_again():
    _bfloat16_refusals.cache_clear()
    yield
    _bfloat16_refusals.cache_clear()


@pytest.mark.usefixtures("asked_again")
def test_refused_without_the_package_by_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    line = "bfloat16 in Triton's interpreter needs ml-dtypes: pip install 'crossmae-kernels[interpreter]'"
    assert machine_refusals(CPU, BFLOAT16) == [line]
    with pytest.raises(RuntimeError) as refused:
        ck.cross_attention(X, X, X, 2, impl="triton")
    assert str(refused.value) == f"cross_attention: impl='triton' cannot serve this call: {line}"


@pytest.mark.usefixtures("asked_again")
@pytest.mark.parametrize("version", ["3.5.1", "3.80.0", "4.0.0+git1a2b3c.d"])
def test_refused_with_another_triton_by_its_version(monkeypatch, version):
    original = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "triton" else original(name))
    line = f"bfloat16 in Triton's interpreter needs Triton 3.6, 3.7, 3.8, but this is {version}"
    assert machine_refusals(CPU, BFLOAT16) == [line]
    assert machine_refusals(CPU, torch.float16) == []
