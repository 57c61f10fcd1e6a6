"""Text-to-image networks as teacher, student and fake score: every objective, features, memory, precision."""

import functools

import pytest
import torch
from cases import slow_but
from text_teachers import teacher_and_prompts
from tiny_runs import Recorded, fit, moved, weights

from fdistill.models.guidance import Guidance
from fdistill.objectives import DMD2, DiffInstruct, FDistill, SiD, SiDA, UniInstruct
from fdistill.sampling.first_step import with_first_step_of
from fdistill.sampling.student_steps import renoise
from fdistill.theory.divergences import ForwardKL, JensenShannon
from fdistill.theory.noise_levels import LogNormal
from fdistill.training import DistillationModule
from fdistill.training.generation import simulate

pytestmark = pytest.mark.system  # seconds, too many for make check

MOVES = functools.partial(Recorded, lr=1e-2)


@pytest.fixture(scope="module")
def known(folders):
    """Teacher and prompts of a family, imported once."""
    return functools.cache(lambda name: teacher_and_prompts(folders(name)[0], name))


def distilling(teacher, objective, **changes):
    arguments = {
        "noise_levels": LogNormal(-0.5, 1.0),
        "student_optimizer": MOVES,
        "fake_score_optimizer": MOVES,
        "student_times": [999] if "timesteps" in str(teacher.denoiser.preconditioning.spec()) else [1.0],
        "fake_updates_per_student": 1,
        "start": "unit",
    }
    return DistillationModule(teacher, objective, **arguments | changes)


LSG = {"guidance": 2.0, "fake_guidance": 1.5, "fake_training_guidance": 1.5, "fake_label_dropout": 0.1}
OBJECTIVES = {
    "f-distill": (FDistill(JensenShannon(), 1e-3), {"guidance": 1.75, "r1_weight": 1.0, "r1_step": 0.1}),
    "DMD2": (DMD2(1e-3), {"guidance": 1.75, "discriminator": "fake_score"}),
    "SiD, long and short guidance": (SiD(1.0), {**LSG, "projection_guidance": 2.0}),
    "Uni-Instruct": (UniInstruct(ForwardKL()), {}),
    "Diff-Instruct": (DiffInstruct(), {"guidance": 3.0}),
}


@pytest.mark.parametrize("name", slow_but(OBJECTIVES, *[*OBJECTIVES][:2]))
def test_every_objective_moves_student_and_fake_score_of_a_text_teacher(name, known):
    teacher, prompts = known("sd")
    objective, settings = OBJECTIVES[name]
    module = distilling(teacher, objective, **settings)
    before = weights(module)
    fit(module, 3, prompts)
    assert module.updates == 1
    now = weights(module)
    assert all(torch.isfinite(value).all() for value in now.values() if value.is_floating_point())
    sides = ["student", "fake_score", "ema", *(["ratio"] if objective.needs.discriminator else [])]
    assert all(moved(before, module, side) for side in sides)
    assert not moved(before, module, "teacher")


@pytest.mark.parametrize(("name", "precision"), [("sd", "32-true"), ("flux", "bf16-mixed")])
def test_recomputed_activations_change_neither_gradients_nor_what_is_learnt(name, precision, known):
    """SiDA differentiates the fake score, whose weights rest then, and the teacher by their inputs."""
    teacher, prompts = known(name)
    ends, norms = [], []
    for recomputes in (False, True):
        objective = SiDA(0.1)
        module = distilling(teacher, objective, discriminator="fake_score", gradient_checkpointing=recomputes)
        calls = []
        module.student.network.family.blocks(module.student.network.stock)[0].register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        run = fit(module, 4, prompts, precision=precision)
        ends.append((weights(module), len(calls)))
        norms.append([optimizer.norms for optimizer in run.optimizers])
    (plain, once), (recomputed, twice) = ends
    if name == "flux":  # of a UNet, blocks inside of its middle one are computed again
        assert twice == once + module.updates
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-4, atol=1e-6)
    for key, value in plain.items():
        torch.testing.assert_close(recomputed[key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_a_discriminator_at_an_early_block_asks_no_later_one_where_features_are_all(known):
    teacher, prompts = known("sd3")
    module = distilling(teacher, DMD2(0.1), feature_blocks=[0])
    assert len(module.ratio.discriminator.heads) == 1
    assert len(distilling(teacher, DMD2(0.1), feature_blocks=[0, 1]).ratio.discriminator.heads) == 2
    called = {0: [], 1: []}
    for index, block in enumerate(module.teacher.network.family.blocks(module.teacher.network.stock)):
        block.register_forward_hook(lambda *_, index=index: called[index].append(module.global_step))
    fit(module, 2, prompts)
    assert 0 in called[0]  # the fake side reads features alone, the student's turn the denoised sample too
    assert set(called[1]) == {1}


@pytest.mark.parametrize("name", ["sd", "qwen-image"])
def test_a_teacher_in_bfloat16_denoises_as_in_float32_up_to_rounding(name, known):
    teacher, prompts = known(name)
    module = distilling(teacher, DiffInstruct(), teacher_dtype="bfloat16")
    fit(module, 2, prompts)
    x, sigma = teacher.noise(2, 0), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        exact, rounded = (d(x, sigma, prompts.condition.rows(slice(2))) for d in (teacher.denoiser, module.teacher))
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.03


def test_a_run_rescales_guidance_as_its_teacher_does(known):
    module = distilling(known("qwen-image")[0], SiD(1.0), **LSG)
    assert module.guidance == Guidance(2.0, rescale=1.0, norm="token")
    assert module.fake_guidance == module.fake_training_guidance == Guidance(1.5, rescale=1.0, norm="token")
    other = distilling(known("sd")[0], DiffInstruct(), guidance=4.0, guidance_rescale=0.7)
    assert other.guidance == Guidance(4.0, rescale=0.7)
    with pytest.raises(ValueError, match="guidance_rescale"):
        distilling(known("sd")[0], DiffInstruct(), guidance_rescale=0.7)


@pytest.mark.parametrize(
    ("name", "times", "levels"),
    [
        ("sd", [999], [14.6146]),
        ("sd", [399], [1.1606]),
        ("sd", [999, 749, 499, 249], [14.6146, 4.082, 1.613, 0.693]),
        ("sd3", [1.0], [1e8]),
        ("sd3", [1.0, 0.75, 0.5, 0.25], [1e8, 3.0, 1.0, 1 / 3]),
    ],
)
def test_times_of_a_student_are_noise_levels_of_its_teachers_path(name, times, levels, known):
    module = distilling(known(name)[0], DiffInstruct(), student_times=times)
    assert module.levels == pytest.approx(levels, rel=1e-3)


@pytest.mark.parametrize(("name", "times"), [("sd", [999, 749, 499, 249]), ("sd3", [1.0, 0.75, 0.5, 0.25])])
def test_what_the_last_step_learns_from_is_what_sampling_gives_it(name, times, known):
    teacher, prompts = known(name)
    module = distilling(teacher, DiffInstruct(), student_times=times)
    condition, model = prompts.condition.rows(slice(2)), module.generative_model()
    noise = model.noise(2, 0)
    x = simulate(module.student, noise.unbind(1), module.levels, condition, True, module.start)
    torch.testing.assert_close(x.detach(), model.sample(noise, condition), rtol=1e-5, atol=1e-5)
    assert x.requires_grad


def test_a_teacher_of_prompts_makes_the_first_step_rescaled_as_its_pipeline_does(known):
    teacher, prompts = known("qwen-image")
    student = distilling(teacher, DiffInstruct(), student_times=[1.0, 0.5], guidance=3.0).generative_model()
    mixed, noise, condition = (
        with_first_step_of(student, teacher),
        student.noise(2, 0),
        prompts.condition.rows(slice(2)),
    )
    levels = [float(level) for level in student.sigmas]
    guidance = Guidance(3.0, rescale=1.0, norm="token")
    with torch.no_grad():
        x = guidance(teacher.denoiser, renoise(None, noise[:, 0], levels[0], "unit"), levels[0], condition)
        x = student.denoiser(renoise(x, noise[:, 1], levels[1], "unit"), torch.full((2,), levels[1]), condition)
    torch.testing.assert_close(mixed.sample(noise, condition), x, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(student.sample(noise, condition), x, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sd", {"student_times": [1000]}),
        ("sd3", {"student_times": [2.0]}),
        ("sd", {"student_times": [499, 999]}),
        ("sd", {"student_times": [999], "sigma_init": 3.0}),
        ("sd", {"student_times": []}),
        ("sd", {"feature_blocks": [5]}),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused(name, changes, known):
    with pytest.raises(ValueError, match=r"student_times|feature_blocks|renoise_levels"):
        distilling(known(name)[0], DiffInstruct(), **changes)
