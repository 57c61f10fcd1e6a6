"""The networks of a reward tuning: the policy that learns, an older one that makes samples, and the reference."""

import copy
from pathlib import Path

import torch

from fdistill.models.adapters import adapter_layers, own_parameters, sharing_copy
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import train_without_dropout
from fdistill.training.initial_networks import teacher_model
from fdistill.training.roles import FullCopies, Roles


def policy_and_reference(
    roles: Roles, teacher: Denoiser, reference: Denoiser | str | Path | None, kl_weight: float
) -> tuple[Denoiser, Denoiser | None]:
    """The policy before the first turn, and the frozen network that its divergence is measured from.

    Adapters stand on a base, which is always there and is the reference. A full copy has a reference where the
    divergence counts.

    Args:
        roles: what of the policy learns.
        teacher: as it was loaded; copied.
        reference: a denoiser or checkpoint in place of the teacher.
        kl_weight: of the divergence, >= 0.

    Raises:
        ValueError: for a teacher without parameters, roles that share nothing here, or a reference that would not
            count or is another network.
    """
    if reference is not None and not kl_weight:
        raise ValueError("a reference counts by the algorithm's kl_weight: expected one above 0 beside it, got 0")
    if isinstance(roles, FullCopies):
        policy = copy.deepcopy(teacher).requires_grad_(True)
        if not any(True for _ in policy.parameters()):
            raise ValueError("this teacher has no parameters to tune: give one with a network that learns")
        train_without_dropout(policy)
        return policy, _full_reference(reference, teacher) if kl_weight else None
    if roles.record("student") is None:
        raise ValueError(
            "a teacher that is tuned has the role of the student alone: expected an adapter, got roles.student full; "
            "leave roles out for a full copy"
        )
    if reference is not None:
        raise ValueError(
            "the reference of adapters is the base that they stand on: expected none beside it, got "
            f"{reference if isinstance(reference, str | Path) else 'another model'}; leave reference out, or tune a "
            "full copy"
        )
    base = _frozen(copy.deepcopy(teacher))
    return roles.start("student", None, teacher, base), base


def old_policy(policy: Denoiser) -> Denoiser:
    """A frozen copy of the policy; of one with adapters it shares the base."""
    return _frozen(sharing_copy(policy) if adapter_layers(policy) else copy.deepcopy(policy))


@torch.no_grad()
def follow(old: Denoiser, policy: Denoiser, keep: float) -> None:
    """Move the old policy, which makes the samples, towards the one that learns.

    Args:
        old: in place; of adapters their factors A and B move, each by itself.
        policy: of the same kind.
        keep: share of its own weights that the old one keeps, in [0, 1).
    """
    pairs = (own_parameters(network).values() for network in (old, policy))
    for weight, now in zip(*pairs, strict=True):
        weight.lerp_(now, 1 - keep)
    for buffer, present in zip(old.buffers(), policy.buffers(), strict=True):
        buffer.copy_(present)


def _frozen(denoiser: Denoiser) -> Denoiser:
    return denoiser.requires_grad_(False).eval()


def _full_reference(source: Denoiser | str | Path | None, teacher: Denoiser) -> Denoiser:
    found = teacher if source is None else teacher_model(source).denoiser
    if found.spec() != teacher.spec():
        raise ValueError(
            f"reference is another model: expected the teacher's network and preconditioning, {teacher.spec()}, got "
            f"{found.spec()}; give an earlier checkpoint of the teacher, or leave it out"
        )
    return _frozen(copy.deepcopy(found))
