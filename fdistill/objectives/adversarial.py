"""The non-saturating adversarial pair; the discriminator's optimum is the log density ratio ln p/q."""

import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(fake_logit: Tensor, real_logit: Tensor) -> Tensor:
    """mean softplus(l_fake) + mean softplus(-l_real); 2 ln 2 where the two cannot be told apart."""
    return F.softplus(fake_logit.float()).mean() + F.softplus(-real_logit.float()).mean()


def generator_loss(fake_logit: Tensor) -> Tensor:
    """mean softplus(-l_fake), the term DMD2 adds to the student (arXiv 2405.14867)."""
    return F.softplus(-fake_logit.float()).mean()
