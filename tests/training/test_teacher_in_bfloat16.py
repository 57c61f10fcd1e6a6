"""A teacher that is held in bfloat16: half the bytes, nearly the same turns, and nobody starts from rounded weights."""

import functools

import pytest
import torch
from test_resume import SaveAt
from tiny_runs import distillation, fit, mlp, weights
from torch.testing import assert_close

from fdistill.sampling.generator import GenerativeModel
from fdistill.training.planning import GPUS, dry_turn, plan_run


def half(num_classes=2, **changes):
    return distillation(mlp(num_classes=num_classes), teacher_dtype="bfloat16", **changes)


def test_student_fake_score_and_average_start_from_the_weights_before_they_are_rounded():
    module, teacher = half(), mlp(num_classes=2)
    for network in (module.student, module.fake_score, module.ema.average):
        assert all(map(torch.equal, network.parameters(), teacher.parameters()))
    assert not all(map(torch.equal, module.teacher.parameters(), teacher.parameters()))
    matrices = [p for p in module.teacher.parameters() if p.ndim > 1]
    assert sum(p.dtype == torch.bfloat16 for p in matrices) == len(matrices) - 1  # the table of classes


def test_its_guide_is_held_like_it():
    module = half(guide=mlp(num_classes=2, seed=1), guidance=2.0)
    assert module.guide.halved
    assert module.guide.network.input.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("turn", ["fused", "alternating"])
def test_turns_differ_by_its_rounding_and_the_same_under_bf16_mixed(turn):
    """Where autocast rounds the same weights anyway, they do not differ at all."""
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    changes = {"adversarial_weight": 0.1, "turn": turn, "student": mlp(num_classes=2, seed=1)}
    changes |= {"student_optimizer": sgd, "fake_score_optimizer": sgd, "fake_updates_per_student": 1}
    for precision, tolerance in (("32-true", 2e-3), ("bf16-mixed", 0)):
        runs = [distillation(mlp(num_classes=2), **changes), half(**changes)]
        for module in runs:
            fit(module, 3, precision=precision)
        found, expected = ({n: v for n, v in weights(m).items() if not n.startswith("teacher")} for m in runs)
        assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_a_run_resumes_bit_for_bit_from_a_checkpoint_without_it(tmp_path):
    path, whole, first, resumed = tmp_path / "two.ckpt", *(half(adversarial_weight=0.1) for _ in range(3))
    fit(whole, 4)
    fit(first, 4, callbacks=[SaveAt(2, path)])
    fit(resumed, 4, resume_from=path)
    now = weights(resumed)
    assert {name for name, value in weights(whole).items() if not torch.equal(value, now[name])} == set()
    assert not any(name.startswith("teacher") for name in torch.load(path, weights_only=True)["state_dict"])


def test_it_is_sampled_like_another_one():
    full, rounded = distillation().teacher_model(), half(num_classes=0).teacher_model()
    assert isinstance(rounded, GenerativeModel)
    noise = full.noise(20, 0)
    assert_close(rounded.sample(noise), full.sample(noise), rtol=0.1, atol=0.1)


def test_its_bytes_are_planned_and_its_turns_cost_the_same():
    full, rounded = distillation(mlp(num_classes=2), adversarial_weight=0.1), half(adversarial_weight=0.1)
    plans = [plan_run(module, 8, 10, GPUS["H100"]) for module in (full, rounded)]
    saved = [plan.memory.pop("weights of teacher") for plan in plans]
    matrices = [p for p in rounded.teacher.parameters() if p.dtype == torch.bfloat16]
    assert saved[0] - saved[1] == sum(p.nbytes for p in matrices)
    assert plans[0] == plans[1]
    assert dry_turn(rounded, 8, 0) == dry_turn(full, 8, 0)


def test_another_type_and_a_penalty_on_its_features_are_refused():
    with pytest.raises(ValueError, match="teacher_dtype"):
        distillation(teacher_dtype="float16")
    with pytest.raises(ValueError, match="features"):
        half(adversarial_weight=0.1, r1_weight=0.1)
    half(adversarial_weight=0.1, r1_weight=0.1, discriminator="fake_score")
