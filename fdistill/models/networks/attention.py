"""Self-attention over the pixels of a feature map, in plain products: it has second derivatives on every device."""

import math

from torch import Tensor


def heads_of(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [B, heads, C, H W].

    Args:
        qkv: [B, 3 heads C, H, W]; query, key and value lie side by side for each channel.
        heads: number of heads.
    """
    query, key, value = qkv.reshape(qkv.shape[0], heads, -1, 3, qkv[0, 0].numel()).unbind(3)
    return query, key, value


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(C)) V over pixels.

    Args:
        query: [B, heads, C, N].
        key: likewise.
        value: likewise.

    Returns:
        [B, heads C, N].
    """
    scores = query.transpose(2, 3) @ (key / math.sqrt(key.shape[2]))  # [B, heads, N queries, N keys]
    return (value @ scores.float().softmax(dim=3).to(value.dtype).transpose(2, 3)).flatten(1, 2)
