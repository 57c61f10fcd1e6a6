"""The clipped, importance-weighted policy gradient of one sampling step (DDPO, Flow-GRPO, MixGRPO)."""

from torch import Tensor


def policy_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """max(-A w, -A clip(w, 1 - c, 1 + c)) with w = p / p_old, [B] (arXiv 2305.13301, 1707.06347).

    Its gradient at w = 1 is -A grad ln p. It bounds -A w from above, and pushes no step further whose w has left
    [1 - c, 1 + c] in the direction of its advantage.

    Args:
        log_prob: of the step under the policy that learns, [B].
        old_log_prob: under the policy that made it, [B]; detached.
        advantage: A, [B].
        clip: c > 0, in units of the log-probabilities: means over entries have small ratios. inf for none.
    """
    ratio = (log_prob - old_log_prob.detach()).exp()
    return (-advantage * ratio).maximum(-advantage * ratio.clamp(1 - clip, 1 + clip))


def is_clipped(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Which steps the clip keeps from moving: their loss has no gradient, bool [B]."""
    ratio = (log_prob - old_log_prob).detach().exp()
    return ((advantage > 0) & (ratio > 1 + clip)) | ((advantage < 0) & (ratio < 1 - clip))
