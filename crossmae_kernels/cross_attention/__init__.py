"""Cross-attention from (gathered) queries to keys and values."""

from torch import Tensor

from crossmae_kernels.common.checks import ArgumentChecks
from crossmae_kernels.common.implementation import Implementation, choose
from crossmae_kernels.common.machine import dtype_refusals, machine_refusals
from crossmae_kernels.cross_attention import ops, reference
from crossmae_kernels.cross_attention.config import WIDEST_HEAD


def cross_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    query_ids: Tensor | None = None,
    scale: float | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """``softmax(scale * q k^T) v`` per head, without a mask: no query sees another (CrossMAE, section 3.2).

    The kernels take heads of up to 128 channels, in float32, float16 and bfloat16. They keep their inputs for the
    backward pass and, with more keys than fit on chip, the output and a float32 log-sum-exp ``(B, heads, Q)``.
    A table's rows are gathered inside of them; on a GPU a row whose id is out of range is not read, and comes out
    as NaN.

    Args:
        query: queries ``(B, Q, D)``, or a table ``(N, D)`` of which ``query_ids`` picks the rows.
        key: ``(B, K, D)``; may be a slice of a joint K/V projection. Heads lie side by side in the last dimension.
        value: ``(B, K, D)``.
        num_heads: number of heads; divides ``D``.
        query_ids: int64 or int32 ``(B, Q)`` rows of the table, each in ``[0, N)``; only with a table.
        scale: factor on the scores; ``(D / num_heads) ** -0.5`` unless given.
        impl: who serves the call.

    Returns:
        ``(B, Q, D)`` in the dtype of the query.

    Raises:
        TypeError, ValueError: on arguments of wrong type, dtype, shape, device or range, before any work.
        RuntimeError: with ``impl="triton"`` when the kernels cannot serve the call, with every reason.
    """
    checks = ArgumentChecks("cross_attention")
    if query_ids is None:
        checks.tensor("query", query, "B Q D")
    else:
        checks.tensor("query", query, "N D")
        checks.ids("query_ids", query_ids, "B Q", limit=checks.size("N"))
    checks.tensor("key", key, "B K D")
    checks.tensor("value", value, "B K D")
    width, keys = checks.size("D"), checks.size("K")
    checks.that(
        num_heads > 0 and width % max(num_heads, 1) == 0,
        f"num_heads must divide the width {width}, got {num_heads}",
    )
    checks.that(keys > 0, "key must hold at least one key, got 0")
    checks.raise_if_any()
    if choose("cross_attention", impl, refusals(key, num_heads), worthwhile=key.is_cuda) == "reference":
        return reference.cross_attention(query, key, value, num_heads, query_ids, scale)
    return ops.cross_attention(query, key, value, num_heads, query_ids, scale)


def refusals(key: Tensor, num_heads: int) -> list[str]:
    """Every reason why the kernels cannot serve a call with these keys."""
    reasons = machine_refusals(key.device) + dtype_refusals(key)
    head_width = key.shape[-1] // num_heads
    if head_width > WIDEST_HEAD:
        reasons.append(f"kernels take heads of up to {WIDEST_HEAD} channels, these have {head_width}")
    return reasons
