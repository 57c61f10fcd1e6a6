"""A turn in micro-batches is the turn of the whole batch."""

import pytest
import torch
from tiny_runs import GivenData, Recorded, distillation, fit, mlp, moved, ring, teacher_training, weights
from torch.testing import assert_close

from fdistill.models.learned_uncertainty import LearnedUncertainty
from fdistill.objectives import DMD2, Fisher, ScoreOfMixture, UniInstruct
from fdistill.objectives.log_ratio import RatioEstimator, SampleDiscriminator
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.noise_levels import LogNormal

PLAIN = {"student_optimizer": Recorded, "fake_score_optimizer": Recorded, "gradient_clip": 1e9}
CLASSES = {"teacher": mlp(num_classes=2)}
EXACT = {
    "teacher": lambda **more: teacher_training(optimizer=Recorded, gradient_clip=1e9, **more),
    "teacher with classes and a weight that learns": lambda **more: teacher_training(
        mlp(num_classes=2).network,
        loss_weight=LearnedUncertainty(1.0),
        label_dropout=0.5,
        optimizer=Recorded,
        gradient_clip=1e9,
        **more,
    ),
    "fused": lambda **more: apart(objective=DMD2(0.3, "sigma"), **more),
    "fused, exact penalty": lambda **more: apart(
        objective=DMD2(0.3, "sigma"), discriminator="fake_score", r1_weight=0.1, **more
    ),
    "several steps": lambda **more: apart(objective=DMD2(0.3, "sigma"), renoise_levels=[0.8, 0.3], **more),
    "gradients of the networks": lambda **more: apart(objective=Fisher(), **more),
    "fake turn": lambda **more: apart(
        objective=DMD2(0.3, "sigma"), turn="alternating", fake_label_dropout=0.5, **CLASSES, **more
    ),
    "student's turn": lambda **more: apart(
        objective=DMD2(0.3, "sigma"), turn="alternating", fake_updates_per_student=1, **CLASSES, **more
    ),
}


def apart(**changes):
    """Student and fake score that differ, so that the first turn moves the student; steps are gradients."""
    given = {} if "teacher" in changes else {"student": mlp(seed=1), "fake_score": mlp(seed=2)}
    return distillation(**PLAIN | given | changes)


def after(build, accumulate, turns):
    module = build(accumulate=accumulate)
    before = weights(module)
    fit(module, turns, ring(batch_size=24))
    return {name: value - before[name] for name, value in weights(module).items() if value.is_floating_point()}


@pytest.mark.parametrize("name", EXACT)
def test_a_turn_in_two_or_three_parts_makes_the_step_of_the_whole_batch(name):
    turns = 2 if name == "student's turn" else 1
    whole = after(EXACT[name], 1, turns)
    assert any(change.abs().max() > 1e-3 for change in whole.values())
    for accumulate in (2, 3):
        assert_close(after(EXACT[name], accumulate, turns), whole, rtol=1e-3, atol=1e-5)


def test_networks_see_one_micro_batch_at_a_time():
    module, sizes = apart(objective=DMD2(0.3), accumulate=4), []
    for network in (module.student, module.fake_score):
        network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    fit(module, 1, ring(batch_size=24))
    assert set(sizes) == {6}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_parts_share_the_noise_of_the_turn_and_draw_the_rest_from_streams_of_their_own(accumulate):
    module, seen = teacher_training(accumulate=accumulate), []
    learn = module._learn
    module._learn = lambda batch, part: (seen.append(part), learn(batch, part))[1]
    fit(module, 2, ring(batch_size=24))
    whole, own = (
        [torch.randn(2, generator=g).tolist() for g in streams] for streams in list(zip(*seen, strict=True))[1:]
    )
    # the loss has drawn from `whole` already, equally much in every part
    assert len({tuple(x) for x in whole}) == 2
    assert len({tuple(x) for x in own}) == 2 * accumulate
    assert (seen[0].own is seen[0].whole) == (accumulate == 1)
    assert [part.rows.start for part in seen] == 2 * list(range(0, 24, 24 // accumulate))


@pytest.mark.parametrize(
    "options",
    [
        {"objective": ScoreOfMixture(adversarial_weight=0.1)},
        {"objective": UniInstruct(JensenShannon(), "normalised")},
        {"adversarial_weight": 0.1, "instance_noise": 0.2, "r1_weight": 0.1, "r1_step": 0.1},
        {"adversarial_weight": 0.1, "turn": "alternating", "fake_updates_per_student": 1},
    ],
)
def test_whatever_stays_within_a_micro_batch_learns_too(options):
    module = distillation(accumulate=2, **options)
    before = weights(module)
    fit(module, 4, ring(batch_size=24))
    assert all(moved(before, module, part) for part in ("student", "fake_score", "ratio"))
    assert {len(numbers) for numbers in module.last_ratio} == {12}


def test_the_ratio_ends_a_batch_in_parts_as_the_whole_batch():
    whole, parts = (RatioEstimator(SampleDiscriminator((2,)), LogNormal(-0.5, 1.0), 1.0, 4, 0.7) for _ in range(2))
    sigma = LogNormal(-0.5, 1.0).sample(60, torch.Generator().manual_seed(0))
    logit = torch.randn(60, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        whole.log_ratio(logit, sigma)
        for i in range(3):
            rows = slice(20 * i, 20 * (i + 1))
            last = parts.log_ratio(logit[rows], sigma[rows], continues=i > 0)
    assert_close(parts.ratio_sum, whole.ratio_sum)
    assert_close(parts.count, whole.count)
    assert_close(last, whole.centred(logit, sigma)[40:])


def test_a_batch_without_such_parts_is_refused():
    with pytest.raises(ValueError, match="model"):
        fit(teacher_training(accumulate=3), 1, ring(batch_size=32))
    with pytest.raises(ValueError, match="batches"):
        teacher_training(accumulate=0)


def test_the_parts_are_the_batch():
    module, seen = teacher_training(accumulate=2, noise_levels=LogNormal(-20.0, 1e-3)), []
    module.denoiser.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.arange(16.0).reshape(8, 2)
    fit(module, 1, GivenData(x, batch_size=8))
    assert_close(torch.cat(seen).sort(dim=0).values, x, rtol=0, atol=1e-4)
