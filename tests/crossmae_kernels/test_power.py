"""What the error budget notices: faults as subtle as they come, planted in right results, in every dtype."""

import pytest
import torch
from oracles import naive_linear, naive_norm
from seeds import seeded

from crossmae_kernels.testing import Draw, Judge, Problem

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = 1e-3


class Linear(torch.autograd.Function):
    """As kernels compute it: products in float32, each result rounded once."""

    @staticmethod
    def forward(ctx, x, weight, bias, product):
        ctx.save_for_backward(x, weight)
        return (product(x, weight.mT) + bias.float()).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        products = gradient.float() @ weight.float(), gradient.mT.float() @ x.float(), gradient.float().sum(0)
        return *(t.to(x.dtype) for t in products), None


def in_float32(a, b):
    return a.float() @ b.float()


def in_dtype(a, b):
    """Added up in the operands' dtype, one after another."""
    total = torch.zeros(a.shape[0], b.shape[1], dtype=a.dtype)
    for index in range(a.shape[1]):
        total += a[:, index : index + 1] * b[index]
    return total.float()


def short_of_one(a, b):
    """The last of the inner extent forgotten."""
    return in_float32(a[:, :-1], b[:-1])


class Scale(torch.autograd.Function):
    """The value itself, and its gradient off by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return (gradient.float() * ctx.factor).to(gradient.dtype), None


@pytest.fixture
def linear():
    random = Draw(seeded()).normal
    arguments = {"x": random(64, 256), "weight": random(48, 256, scale=1 / 16), "bias": random(48)}
    return Problem("linear", "of 256 to 48", arguments)


def judge(problem, kernels, dtype):
    Judge(problem, dtype, naive_linear, torch.nn.functional.linear).check(kernels)


@pytest.mark.budget
@pytest.mark.parametrize("dtype", DTYPES)
def test_right_products_pass(linear, dtype):
    judge(linear, lambda x, weight, bias: Linear.apply(x, weight, bias, in_float32), dtype)


@pytest.mark.parametrize("wrong", ["x", "weight", "bias"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_off_by_five_percent_is_noticed(linear, dtype, wrong):
    def kernels(**arguments):
        arguments[wrong] = Scale.apply(arguments[wrong], 1.05)
        return Linear.apply(*arguments.values(), in_float32)

    with pytest.raises(AssertionError, match=f"d {wrong} errs by"):
        judge(linear, kernels, dtype)


@pytest.mark.parametrize("product", [in_dtype, short_of_one], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_in_16_bits_and_a_forgotten_term_are_noticed(linear, dtype, product):
    def kernels(x, weight, bias):
        return Linear.apply(x, weight, bias, product)

    if product is in_dtype and dtype == torch.float32:
        # There, it is what everybody does.
        judge(linear, kernels, dtype)
        return
    with pytest.raises(AssertionError, match="out errs by"):
        judge(linear, kernels, dtype)


def normalized(x, variance):
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    return (centred * (variance(wide) + EPS).rsqrt()).to(x.dtype)


@pytest.mark.parametrize(
    ("variance", "dtypes"),
    [
        # By the difference of squares, in which the mean's square cancels.
        (lambda x: x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square(), DTYPES[:1]),
        # Unbiased: 0.4 % of the standard deviation, where bfloat16 rounds to 0.4 %.
        (lambda x: x.var(-1, keepdim=True), DTYPES[:2]),
    ],
    ids=["squares", "unbiased"],
)
def test_another_variance_is_noticed(variance, dtypes):
    problem = Problem("norm", "of 128", {"x": Draw(seeded()).normal(40, 128) + 30})
    for dtype in dtypes:
        judge = Judge(
            problem,
            dtype,
            oracle=lambda x: naive_norm(x, None, None, EPS),
            eager=lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:], eps=EPS),
        )
        judge.check(lambda x: normalized(x, lambda wide: wide.var(-1, keepdim=True, correction=0)))
        with pytest.raises(AssertionError, match="errs by"):
            judge.check(lambda x: normalized(x, variance))
