"""What the fake score may do beside following the student's samples: guidance, label dropout, imitation."""

import functools

import pytest
import torch
from objective_runs import Asking, learning_by
from tiny_runs import Recorded, fit, mlp, moved, ring, weights

from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.objectives import DMD2, Adversarial, DiffInstruct, FDistill, SiD
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.preconditioning import EDM

STILL = functools.partial(Recorded, lr=0.0)


def conditional(objective, **changes):
    """Alternating turns of class-conditional networks that all differ."""
    arguments = {
        "teacher": mlp(num_classes=2),
        "student": mlp(num_classes=2, seed=1),
        "fake_score": mlp(num_classes=2, seed=2),
        "turn": "alternating",
        "fake_updates_per_student": 1,
    }
    return learning_by(objective, **arguments | changes)


@pytest.mark.parametrize("discriminator", ["teacher", "fake_score"])
@pytest.mark.parametrize("objective", [DiffInstruct(), DMD2(0.1), SiD()], ids=lambda value: type(value).__name__)
def test_the_guided_fake_score_goes_from_no_class_through_its_class(objective, discriminator):
    module = conditional(
        objective,
        fake_guidance=2.5,
        fake_label_dropout=0.1,
        discriminator=discriminator,
        fake_score_optimizer=STILL,
        student_optimizer=STILL,
    )
    asking = Asking(objective)
    fit(module, 2)
    (at,) = asking.seen
    with torch.no_grad():
        with_class = module.fake_score(at.x_t, at.sigma, at.condition)
        without = module.fake_score(at.x_t, at.sigma, torch.full((len(at.x),), 2))
    torch.testing.assert_close(at.fake_score.detach(), without + 2.5 * (with_class - without))
    assert at.fake_score.requires_grad == (objective.needs.fake_score == "gradient")


def test_each_of_the_four_scales_of_long_and_short_guidance_acts_where_it_belongs():
    """kappa 1 where the fake score learns, 2 and 3 in the two factors of SiD's loss, 4 of the teacher."""
    scales = {"guidance": 4.0, "fake_guidance": 2.5, "projection_guidance": 3.0, "fake_training_guidance": 1.5}
    still = {"student_optimizer": STILL, "fake_score_optimizer": STILL}
    module = conditional(SiD(1.0, "uniform"), **scales, **still, fake_label_dropout=0.01)
    learnt = []
    step, asking = module._fake_losses, Asking(module.objective)
    module._fake_losses = lambda batch, noised: learnt.append(noised) or step(batch, noised)
    fit(module, 2)
    (at,), (noised,) = asking.seen, learnt

    def guided(denoiser, scale, at):
        return Guidance(scale)(denoiser, at.x_t, at.sigma, at.condition)

    teacher, fake, projected = (
        guided(net, scale, at) for net, scale in ((module.teacher, 4), (module.fake_score, 2.5), (module.fake_score, 3))
    )
    truth = ((teacher - fake) * (projected - at.x)).flatten(1).mean(1)  # alpha = 1
    torch.testing.assert_close(module.objective.loss(at).terms["student"].value, truth)
    kept = ~noised.dropped
    learning = guided(module.fake_score, 1.5, noised)
    torch.testing.assert_close(noised.fake_score.denoised[kept], learning[kept])


def test_guidance_of_the_fake_score_does_not_change_what_it_learns():
    ends = []
    for scale in (1.0, 3.0):
        module = conditional(DiffInstruct(), fake_guidance=scale, fake_label_dropout=0.5, student_optimizer=STILL)
        fit(module, 5)
        ends.append(weights(module))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def labels_seen(module, turns):
    """By turn, every batch of labels that the fake score saw."""
    seen, encode = {}, module.fake_score.network.encode

    def watched(x, noise, condition):
        seen.setdefault(module.global_step, []).append(condition["labels"])
        return encode(x, noise, condition)

    module.fake_score.network.encode = watched
    fit(module, turns, ring(batch_size=256))
    return seen


def test_a_share_of_labels_is_dropped_while_the_fake_score_learns_and_none_while_the_student_does():
    module = conditional(DiffInstruct(), fake_label_dropout=0.25, fake_updates_per_student=4)
    seen = labels_seen(module, 10)
    assert [int((labels == 2).sum()) for turn in (4, 9) for labels in seen[turn]] == [0, 0]
    dropped = torch.cat([labels for turn, parts in seen.items() if turn % 5 != 4 for labels in parts]) == 2
    assert len(dropped) == 8 * 256
    assert dropped.float().mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / len(dropped)) ** 0.5)


def test_a_discriminator_on_the_fake_score_sees_real_samples_with_the_same_labels():
    """Else a missing class would tell it what is generated."""
    module = conditional(FDistill(JensenShannon()), fake_label_dropout=0.5, discriminator="fake_score")
    generated, real = labels_seen(module, 1)[0]
    assert torch.equal(generated, real)
    assert 0 < int((generated == 2).sum()) < 256


@pytest.mark.parametrize("turn", ["fused", "alternating"])
@pytest.mark.parametrize("kept", [0.0, 0.75])
def test_after_an_update_the_fake_score_is_a_mean_of_itself_and_the_student(kept, turn):
    module = learning_by(
        DiffInstruct(),
        fake_score=mlp(seed=2),
        imitation=kept,
        turn=turn,
        fake_updates_per_student=1,
        fake_score_optimizer=STILL,
    )
    before = weights(module)
    fit(module, 1 if turn == "fused" else 2)
    for (name, fake), student in zip(module.fake_score.named_parameters(), module.student.parameters(), strict=True):
        mean = kept * before[f"fake_score.{name}"].double() + (1 - kept) * student.double()
        torch.testing.assert_close(fake.double(), mean, rtol=1e-6, atol=1e-7)


def test_a_fake_score_that_keeps_all_of_itself_does_not_move_after_the_student():
    module = learning_by(DiffInstruct(), fake_score=mlp(seed=2), imitation=1.0, fake_score_optimizer=STILL)
    before = weights(module)
    fit(module, 2)
    assert not moved(before, module, "fake_score")


def test_it_imitates_the_student_only_after_updates_of_the_student():
    module = learning_by(
        DiffInstruct(), fake_score=mlp(seed=2), imitation=0.5, fake_score_warmup=2, fake_score_optimizer=STILL
    )
    before = weights(module)
    fit(module, 2)
    assert not moved(before, module, "fake_score")


def unlike(preconditioning):
    other = mlp(num_classes=2, seed=2)
    return Denoiser(other.network, preconditioning)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fake_guidance": 2.0}, "fake_label_drop"),
        ({"fake_guidance": float("inf")}, "guidance"),
        ({"fake_training_guidance": 2.0}, "fake_label_drop"),
        ({"projection_guidance": 2.0}, "projection"),
        ({"fake_label_dropout": 0.1, "turn": "fused"}, "alternating"),
        ({"fake_label_dropout": 1.5}, "fake_label_dropout"),
        ({"fake_score": mlp(), "fake_label_dropout": 0.1}, "fake_label_dropout"),
        (
            {"fake_score": mlp(), "fake_label_dropout": 0.1, "fake_guidance": 2.0},
            "fake_guidance",
        ),
        (
            {"objective": Adversarial(), "fake_score": None, "fake_label_dropout": 0.1},
            "fake_label_dropout",
        ),
        ({"objective": Adversarial()}, "fake_score"),
        ({"objective": Adversarial(), "fake_score": None, "imitation": 0.9}, "imitation"),
        ({"imitation": 1.1}, r"in \[0, 1\]: got 1.1"),
        ({"imitation": float("nan")}, r"in \[0, 1\]: got nan"),
        ({"imitation": 0.9, "fake_score": mlp()}, "preconditioning"),
        ({"imitation": 0.9, "fake_score": unlike(EDM(0.5))}, "precond"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_what_the_fake_score_cannot_do_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        conditional(**{"objective": DiffInstruct()} | changes)
