"""Three roles on one base beside three networks of the same merged weights: gradients by the chain rule."""

import torch
from tiny_runs import fit, mlp, weights

from fdistill.core.distributed import whole
from fdistill.models.adapters import adapter_layers, adapter_parameters, merged, own_parameters, shares
from fdistill.training.roles import FullCopies, SharedBase

ROLES = {"rank": 2, "alpha": 3.0, "targets": "all"}


class Kept(torch.optim.SGD):
    """Moves nothing, and adds up the gradients of each parameter of its first group, by number."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.0)
        self.seen = {}

    def step(self, closure=None):
        for number, parameter in enumerate(self.param_groups[0]["params"]):
            if parameter.grad is not None:
                self.seen[number] = self.seen.get(number, 0) + whole(parameter.grad).clone()
        return super().step(closure)


KEEPS = {"student_optimizer": Kept, "fake_score_optimizer": Kept, "gradient_clip": 1e9}


def doubled(module):
    """In float64, but for the bins of the ratio, which are float32 whatever the networks are."""
    module.double()
    for bins in () if getattr(module, "ratio", None) is None else module.ratio.buffers():
        bins.data = bins.float()
    return module


def moved(module):
    """The module, with factors of student and fake score that are not at their start."""
    for seed, name in enumerate(("student", "fake_score")):
        moved_factors(getattr(module, name) or mlp(), seed)
    return module


@torch.no_grad()
def moved_factors(network, seed):
    """Random factors in place of those at their start."""
    generator = torch.Generator().manual_seed(seed)
    for factor in adapter_parameters(network):
        factor.copy_(0.2 * torch.randn(factor.shape, generator=generator))


def separate(module, build):
    """Three networks that hold the same merged weights; `build` as the first module was, but for its networks."""
    fake = {} if module.fake_score is None else {"fake_score": merged(module.fake_score)}
    return doubled(build(module.teacher, student=merged(module.student), roles=FullCopies(), **fake))


def gradients(module, name):
    """The sums of a network's gradients in the run that it has made, by the parameters' names."""
    names = list(own_parameters(getattr(module, name)))
    return {names[number]: value for number, value in module.trainer.optimizers[name == "fake_score"].seen.items()}


def chain_rule_error(shared, full, names=("student", "fake_score")):
    """Largest error of a gradient, relative to its norm + 1e-3, by W + s B A: dA = s B^T dW and dB = s dW A^T.

    What learns in full has the gradients of the other module's network. Infinite where a gradient is missing.
    """
    errors = []
    for name in names:
        one = getattr(shared, name)
        if one is None:
            continue
        expected, found = gradients(full, name), gradients(shared, name)
        for layer_name, layer in adapter_layers(one).items():
            if f"{layer_name}.weight" not in expected:
                continue
            merged_by = expected[f"{layer_name}.weight"].flatten(1)
            down, up = (whole(factor.weight).detach().flatten(1) for factor in (layer.lora_A, layer.lora_B))
            expected[f"{layer_name}.lora_A.weight"] = layer.scale * up.T @ merged_by
            expected[f"{layer_name}.lora_B.weight"] = layer.scale * merged_by @ down.T
        assert any(value.abs().max() > 0 for value in found.values())
        for key in own_parameters(one).keys() & expected.keys():
            size = expected[key].norm()
            off = (found[key].flatten() - expected[key].flatten()).norm() if key in found else torch.tensor(torch.inf)
            errors.append(float(off / (1e-3 + size)) if key in found or size > 0 else 0.0)
        assert found.keys() <= expected.keys()
    return max(errors)


def error_beside_separate(build, turns, data=None, roles=ROLES, **how):
    """`chain_rule_error` of a run of three roles on one base; their base is one, and stays as it is to the last bit."""
    shared = moved(doubled(build(roles=SharedBase(**roles))))
    base = weights(shared.teacher)
    full = separate(shared, build)
    fit(shared, turns, None if data is None else data(), **how)
    fit(full, turns, None if data is None else data())
    assert shares(shared.student, shared.teacher)
    assert all(torch.equal(value, base[name]) for name, value in weights(shared.teacher).items())
    return chain_rule_error(shared, full)
