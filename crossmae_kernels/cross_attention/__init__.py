"""Cross-attention from (gathered) queries to keys and values."""

import torch.nn.functional as F
from torch import Tensor

from crossmae_kernels.cross_attention import cpu, ops, reference
from crossmae_kernels.cross_attention.config import Packing, refusals, unpacked, width_of
from crossmae_kernels.environment import Implementation
from crossmae_kernels.runtime.autocast import cast, compute_dtype
from crossmae_kernels.runtime.checks import ArgumentChecks
from crossmae_kernels.runtime.dispatch import WholeForms, choose
from crossmae_kernels.runtime.launch import dot_extent, input_precision


def cross_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    query_ids: Tensor | None = None,
    scale: float | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """``softmax(scale * q k^T) v`` per head, without a mask: queries do not see each other (CrossMAE, section 3.2).

    The kernels support heads of up to 128 channels in float32, float16 and bfloat16; float32 products follow
    ``torch.set_float32_matmul_precision``. For the backward pass they save their inputs and, if there are more keys
    than fit on chip, the output and a float32 log-sum-exp ``(B, heads, Q)``.
    They gather a table's rows themselves; on a GPU a row whose id is out of range is not read, and its result is NaN.
    In the backward pass it makes the gradients of all keys and values of its image NaN, and adds nothing to the
    table's.

    Args:
        query: queries ``(B, Q, D)``, or a table ``(N, D)`` whose rows ``query_ids`` selects.
        key: ``(B, K, D)``, with heads concatenated in the last dimension.
        value: ``(B, K, D)``.
        num_heads: number of heads; divides ``D``.
        query_ids: int64 or int32 ``(B, Q)`` rows of the table, each in ``[0, N)``; only with a table.
        scale: factor on the scores; by default ``(D / num_heads) ** -0.5``.
        impl: the implementation, see ``crossmae_kernels``.

    Returns:
        ``(B, Q, D)`` in the dtype of the query.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, shape, device or range, before any work.
        RuntimeError: with ``impl="triton"`` if the kernels cannot run the call, with every reason.
    """
    checks = ArgumentChecks("cross_attention")
    whole = _check_numbers(checks, num_heads, scale)
    _check_query(checks, query, query_ids)
    checks.tensor("key", key, "B K D")
    checks.tensor("value", value, "B K D")
    _check_heads(checks, num_heads if whole else 1, checks.size("D"))
    checks.that(checks.size("K") > 0, "key must hold at least one key, got 0")
    return _attend(checks, query, key, value, "none", num_heads, query_ids, scale, impl)


def cross_attention_kvpacked(
    query: Tensor,
    key_value: Tensor,
    num_heads: int,
    query_ids: Tensor | None = None,
    scale: float | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """``cross_attention`` to keys and values concatenated in one tensor, as from a joint projection.

    The kernels return their gradient as one tensor too; gradients of slices would have to be concatenated.

    Args:
        query: as in ``cross_attention``.
        key_value: ``(B, K, 2 D)``, keys first.
        num_heads: see ``cross_attention``, as for the other arguments, the result and the errors.
    """
    checks = ArgumentChecks("cross_attention_kvpacked")
    whole = _check_numbers(checks, num_heads, scale)
    _check_query(checks, query, query_ids)
    checks.tensor("key_value", key_value, f"B K {2 * checks.size('D')}")
    _check_heads(checks, num_heads if whole else 1, checks.size("D"))
    checks.that(checks.size("K") > 0, "key_value must hold at least one key, got 0")
    return _attend(checks, query, key_value, None, "kv", num_heads, query_ids, scale, impl)


def self_attention_qkvpacked(
    query_key_value: Tensor, num_heads: int, scale: float | None = None, impl: Implementation = "auto"
) -> Tensor:
    """``cross_attention`` of tokens to themselves; the kernels return the gradient as one tensor too.

    Args:
        query_key_value: ``(B, T, 3 D)``: queries, keys and values concatenated, as from a joint projection.
        num_heads: see ``cross_attention``, as for the other arguments and the errors.

    Returns:
        ``(B, T, D)``.
    """
    checks = ArgumentChecks("self_attention_qkvpacked")
    whole = _check_numbers(checks, num_heads, scale)
    checks.tensor("query_key_value", query_key_value, "B T W")
    width = checks.size("W")
    checks.that(width % 3 == 0, f"query_key_value must hold three tensors of one width, got {width} columns")
    _check_heads(checks, num_heads if whole else 1, width // 3)
    checks.that(checks.size("T") > 0, "query_key_value must hold at least one token, got 0")
    return _attend(checks, query_key_value, None, None, "qkv", num_heads, None, scale, impl)


def _check_numbers(checks: ArgumentChecks, num_heads: int, scale: float | None) -> bool:
    """Check the numbers themselves; returns whether ``num_heads`` is valid."""
    if scale is not None:
        checks.number("scale", scale)
    return checks.integer("num_heads", num_heads)


def _check_query(checks: ArgumentChecks, query: Tensor, query_ids: Tensor | None) -> None:
    if query_ids is None:
        checks.tensor("query", query, "B Q D")
    else:
        checks.tensor("query", query, "N D")
        checks.ids("query_ids", query_ids, "B Q", limit=checks.size("N"))


def _check_heads(checks: ArgumentChecks, num_heads: int, width: int) -> None:
    checks.that(width % num_heads == 0, f"num_heads must divide the width {width}, got {num_heads}")


def _attend(
    checks: ArgumentChecks,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    packing: Packing,
    num_heads: int,
    query_ids: Tensor | None,
    scale: float | None,
    impl: Implementation,
) -> Tensor:
    """Raise what the checks found, or run the call."""
    checks.raise_if_any()
    tensors = query, key, value
    dtypes = [compute_dtype(tensor) for tensor in tensors if tensor is not None]
    reasons = refusals(query.device, dtypes, width_of(query, packing) // num_heads)
    own = cpu.serves(tensors, query_ids, dtypes[0])
    chosen = choose(checks.op, impl, reasons, worthwhile=query.is_cuda, cpu=own)
    if chosen == "reference":
        return reference.cross_attention(*unpacked(*tensors, packing), num_heads, query_ids, scale)
    # Autocast casts to one dtype; float64, which it leaves alone, is refused.
    key, value = cast(key, dtypes[0]), cast(value, dtypes[0])
    query = cast(query, dtypes[0])
    if chosen == "cpu":
        query = query if query_ids is None else query[query_ids]
        return cpu.cross_attention(query, key, value, packing, num_heads, scale)
    return _FORMS.serve(impl, query, key, value, query_ids, packing, num_heads, scale)


def _by_pytorch(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    query_ids: Tensor | None,
    packing: Packing,
    num_heads: int,
    scale: float | None,
) -> Tensor:
    """The reference, but with NaN for ids out of range, like the kernels."""
    if query_ids is None:
        return reference.cross_attention(*unpacked(query, key, value, packing), num_heads, None, scale)
    # A NaN in a query is not enough: on a CPU PyTorch's attention makes a row of zeros of it.
    unknown = (query_ids < 0) | (query_ids >= len(query))
    ids = query_ids.masked_fill(unknown, len(query))
    table = F.pad(query, (0, 0, 0, 1))
    out = reference.cross_attention(*unpacked(table, key, value, packing), num_heads, ids, scale)
    return out * out.new_ones(ids.shape).masked_fill_(unknown, float("nan"))[..., None]


def _key(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    query_ids: Tensor | None,
    packing: Packing,
    num_heads: int,
    scale: float | None,
) -> tuple[object, ...]:
    """Counts as the tile sizes that hold them."""
    queries, keys = (query if query_ids is None else query_ids).shape[1], (query if key is None else key).shape[1]
    return (
        packing, num_heads, width_of(query, packing) // num_heads, dot_extent(queries), dot_extent(keys),
        query.dtype, input_precision(query.dtype),
        query_ids is not None and f"ids for {len(query_ids).bit_length()} bits of images",
    )  # fmt: skip


_FORMS = WholeForms("cross_attention", {"kernels": ops.cross_attention, "pytorch": _by_pytorch}, _key, refusals={})
