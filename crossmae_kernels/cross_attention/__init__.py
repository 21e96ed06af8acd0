"""Cross-attention from (gathered) queries to keys and values."""

from torch import Tensor

from crossmae_kernels.common.checks import ArgumentChecks
from crossmae_kernels.common.implementation import NO_KERNEL, Implementation, choose
from crossmae_kernels.cross_attention import reference


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
    choose("cross_attention", impl, NO_KERNEL)
    return reference.cross_attention(query, key, value, num_heads, query_ids, scale)
