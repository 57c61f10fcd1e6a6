"""A generative model samples reproducibly, counts its evaluations and checks its conditions."""

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, GaussianMixture, SmallUNet
from fdistill.sampling import Heun, one_step
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import EDM, X0Prediction
from fdistill.training.callbacks.measured import in_run_precision

pytestmark = pytest.mark.system  # seconds, too many for make check


class CountingDenoiser(Denoiser):
    evaluations = 0

    def forward(self, x, sigma, labels=None):
        self.evaluations += 1
        return super().forward(x, sigma, labels)


def denoiser(num_classes=0):
    torch.manual_seed(0)
    return CountingDenoiser(MLP(dim=2, width=16, depth=2, num_classes=num_classes), EDM(0.5))


def mixture():
    return Denoiser(GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], [0.2, 0.2]), X0Prediction(VarianceExploding()))


@pytest.mark.parametrize(
    ("build", "evaluations"),
    [
        (lambda: GenerativeModel.student(denoiser(), 2.5), 1),
        (lambda: GenerativeModel.student(denoiser(3), 2.5), 1),
        (lambda: GenerativeModel.student(denoiser(), [2.5, 0.7]), 2),
        (lambda: GenerativeModel.student(denoiser(3), [2.5, 0.7, 0.2, 0.1]), 4),
        (lambda: GenerativeModel.teacher(denoiser(), 18, 0.01, 40.0), 35),
        (lambda: GenerativeModel.teacher(denoiser(), 18, 0.01, 40.0, guidance=2.0), 35),
        (lambda: GenerativeModel.teacher(denoiser(3), 18, 0.01, 40.0), 35),
        (lambda: GenerativeModel.teacher(denoiser(3), 18, 0.01, 40.0, guidance=2.0), 70),
        (lambda: GenerativeModel.teacher(denoiser(), 1, 0.01, 40.0), 1),
    ],
    ids=[
        "student",
        "class student",
        "two steps",
        "four steps",
        "teacher",
        "no class to guide",
        "class teacher",
        "guided",
        "one step",
    ],
)
def test_stated_number_of_evaluations_is_the_number_made(build, evaluations):
    model = build()
    model.sample(model.noise(5, seed=0), model.labels(5))
    assert model.denoiser.evaluations == model.evaluations == evaluations


def test_a_student_is_its_denoiser_at_sigma_init_and_a_teacher_is_heun():
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    student, teacher = GenerativeModel.student(mixture(), 2.5), GenerativeModel.teacher(mixture(), 9, 0.01, 40.0)
    assert_close(student.sample(noise), one_step(mixture(), noise, torch.tensor([2.5])))
    assert_close(teacher.sample(noise), Heun()(mixture(), noise, teacher.sigmas))


def test_a_teacher_of_an_exact_mixture_generates_the_mixture():
    model = GenerativeModel.teacher(mixture(), 40, 0.01, 40.0)
    samples = model.sample(model.noise(20_000, seed=0))
    nearest = samples[:, 0].sign()
    assert samples.mean(dim=0).abs().max() < 5 / 20_000**0.5
    assert_close((samples[:, 0] - nearest).std().item(), 0.2, rtol=0.03, atol=0)
    assert_close(samples[:, 1].std().item(), 0.2, rtol=0.03, atol=0)


def test_noise_is_a_function_of_the_seed_and_begins_equally_for_every_number():
    model = GenerativeModel.student(mixture(), 2.5)
    assert torch.equal(model.noise(32, seed=3), model.noise(32, seed=3))
    assert not torch.equal(model.noise(32, seed=3), model.noise(32, seed=4))
    assert model.noise(32, seed=3).shape == (32, 2)


def test_default_labels_name_the_classes_in_turn():
    assert GenerativeModel.student(denoiser(3), 1.0).labels(7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert GenerativeModel.student(denoiser(), 1.0).labels(7) is None


def test_samples_do_not_depend_on_the_batch_size():
    model = GenerativeModel.teacher(denoiser(3), 4, 0.1, 5.0, guidance=2.0)
    noise, labels = model.noise(10, seed=0), model.labels(10)
    assert_close(model.sample(noise, labels, batch_size=3), model.sample(noise, labels, batch_size=10))


def test_models_are_in_evaluation_mode():
    assert not GenerativeModel.student(denoiser().train(), 1.0).denoiser.training
    assert not GenerativeModel.teacher(denoiser().train(), 2, 0.1, 1.0).denoiser.training


def test_labels_given_to_an_unconditional_model_are_ignored():
    model = GenerativeModel.student(mixture(), 2.5)
    noise = model.noise(4, seed=0)
    assert torch.equal(model.sample(noise, torch.arange(4)), model.sample(noise))


@pytest.mark.parametrize("build", [denoiser, mixture], ids=["with parameters", "analytic"])
def test_samples_are_made_where_the_denoiser_is(build):
    assert GenerativeModel.student(build(), 1.0).to("cpu").device == torch.device("cpu")
    assert GenerativeModel.student(build(), 1.0).to("meta").device == torch.device("meta")


@pytest.mark.parametrize(
    ("labels", "match"),
    [(None, "got none"), (torch.tensor([0, 3]), r"\[0, 3\): got 3"), (torch.tensor([-1, 0]), "got -1")],
)
def test_missing_and_impossible_labels_are_refused(labels, match):
    model = GenerativeModel.student(denoiser(3), 1.0)
    with pytest.raises(ValueError, match=match):
        model.sample(model.noise(2, seed=0), labels)


LEVELS = [[2.5], [2.5, 0.7], [2.5, 0.7, 0.2, 0.1]]


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_latents_are_the_noise_of_each_step_drawn_for_all_samples_in_turn(levels):
    model, generator = GenerativeModel.student(mixture(), levels), torch.Generator().manual_seed(3)
    noise = model.noise(20, seed=3)
    assert noise.shape == (20, *model.latent_shape)
    blocks = [noise] if len(levels) == 1 else noise.unbind(1)
    assert all(torch.equal(block, torch.randn(20, 2, generator=generator)) for block in blocks)
    assert torch.equal(model.latents(20, torch.Generator().manual_seed(3)), noise)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_the_first_step_has_the_latents_of_the_teacher(levels):
    student, teacher = GenerativeModel.student(mixture(), levels), GenerativeModel.teacher(mixture(), 9, 0.01, 40.0)
    assert torch.equal(student.noise(30, 7).reshape(30, -1, 2)[:, 0], teacher.noise(30, 7))


def test_latents_go_on_where_the_generator_stands_and_are_where_it_is():
    model, generator = GenerativeModel.student(mixture(), [2.5, 0.7]), torch.Generator().manual_seed(0)
    assert not torch.equal(model.latents(4, generator), model.latents(4, generator))
    assert model.latents(4, generator).device == generator.device


def test_without_a_generator_latents_are_of_torchs_own_stream():
    model = GenerativeModel.student(mixture(), [2.5, 0.7])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        assert torch.equal(model.latents(6), model.noise(6, seed=5))


def test_one_level_is_a_number_or_a_list_of_one():
    one, listed = GenerativeModel.student(mixture(), 2.5), GenerativeModel.student(mixture(), [2.5])
    noise = one.noise(8, seed=0)
    assert torch.equal(one.sigmas, listed.sigmas)
    assert torch.equal(noise, torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    level = torch.full((8,), 2.5)
    for model in (one, listed):
        assert torch.equal(model.sample(noise), mixture()(2.5 * noise, level))


@pytest.mark.parametrize("levels", LEVELS[1:], ids=str)
def test_samples_of_several_steps_do_not_depend_on_the_batch_size(levels):
    model = GenerativeModel.student(denoiser(3), levels)
    noise, labels = model.noise(10, seed=0), model.labels(10)
    whole = model.sample(noise, labels)
    assert whole.shape == (10, 2)
    assert_close(model.sample(noise, labels, batch_size=3), whole)
    assert_close(model.sample(noise[4:7], labels[4:7]), whole[4:7])


def test_the_noise_of_every_step_matters():
    model = GenerativeModel.student(denoiser(), [2.5, 0.7, 0.2, 0.1])
    noise = model.noise(5, seed=0)
    for step in range(4):
        other = noise.clone()
        other[:, step] *= -1
        assert (model.sample(other) != model.sample(noise)).all()


@pytest.mark.parametrize(
    "levels",
    [[], [1.0, 1.0], [1.0, 2.0], [1.0, 0.0], 0.0, -1.0, [2.0, -1.0], float("nan"), float("inf"), [[2.0, 1.0]]],
    ids=str,
)
def test_levels_of_a_student_are_positive_and_fall(levels):
    with pytest.raises(ValueError, match="fall"):
        GenerativeModel.student(mixture(), levels)


@pytest.mark.parametrize(
    ("build", "shape", "words"),
    [
        (lambda: GenerativeModel.student(mixture(), 2.5), (4, 3), "student"),
        (lambda: GenerativeModel.student(mixture(), 2.5), (4, 1, 2), r"got \[4, 1, 2\]"),
        (lambda: GenerativeModel.student(mixture(), [2.5, 1.0]), (4, 2), "student"),
        (lambda: GenerativeModel.student(mixture(), [2.5, 1.0]), (4, 3, 2), r"got \[4, 3, 2\]"),
        (lambda: GenerativeModel.teacher(mixture(), 3, 0.1, 1.0), (4, 2, 2), "teacher"),
        (lambda: GenerativeModel.student(mixture(), 2.5), (), r"got \[\]"),
    ],
)
def test_latents_of_another_shape_are_refused(build, shape, words):
    with pytest.raises(ValueError, match=words) as error:
        build().sample(torch.zeros(shape))
    assert "\n" not in str(error.value)


class Small(Denoiser):
    """Runs out of memory above 100 samples, and notes how many it is asked for and in which precision."""

    def forward(self, x, sigma, labels=None):
        self.asked = [*getattr(self, "asked", []), len(x)]
        self.in_half = torch.is_autocast_enabled("cpu")
        if len(x) > 100:
            raise torch.OutOfMemoryError("too many")
        return super().forward(x, sigma, labels)


def guided(network):
    return GenerativeModel.teacher(network, 3, 0.01, 4.0, guidance=2.0)


def small_student():
    network = denoiser()
    return GenerativeModel.student(Small(network.network, network.preconditioning), 2.5)


def test_where_memory_is_short_samples_are_made_in_smaller_batches_and_are_the_same():
    model, noise = small_student(), torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    found = model.sample(noise)
    assert model.denoiser.asked == [300, 250, 125, 62, 62, 62, 62, 52]
    assert_close(found, GenerativeModel.student(denoiser(), 2.5).sample(noise))


def test_a_batch_that_was_asked_for_is_not_changed():
    with pytest.raises(torch.OutOfMemoryError):
        small_student().sample(torch.zeros(300, 2), batch_size=200)


@pytest.mark.parametrize(("shape", "size"), [((1, 8, 8), 500), ((1, 28, 28), 64), ((3, 64, 64), 4)])
def test_large_images_are_made_fewer_at_once(shape, size):
    class Still(Denoiser):
        sizes = []

        def forward(self, x, sigma, labels=None):
            self.sizes.append(len(x))
            return x

    network = MLP(dim=2, width=4, depth=2)
    network.sample_shape = shape
    GenerativeModel.student(Still(network, EDM(0.5)), 1.0).sample(torch.zeros(1, *shape).expand(size + 1, *shape))
    assert Still.sizes == [size, 1]


@pytest.mark.parametrize(("precision", "half"), [("bf16-mixed", True), ("32-true", False)])
def test_callbacks_sample_in_the_precision_of_the_run(precision, half):
    class Run:
        pass

    Run.precision = precision
    model = in_run_precision(Run, small_student())
    assert model.sample(torch.zeros(4, 2)).dtype == torch.float32
    assert model.denoiser.in_half is half


@pytest.mark.parametrize("build", [GenerativeModel.student, lambda network, sigma: guided(network)])
def test_channels_last_for_sampling_gives_the_same_samples_and_leaves_small_images_alone(build):
    for resolution, laid_out in ((8, False), (20, True)):
        torch.manual_seed(0)
        network = Denoiser(SmallUNet(resolution, 1, (8, 8), num_classes=2), EDM(0.5))
        model = build(network, 2.0)
        noise, labels = model.noise(6, 0), model.labels(6)
        before = model.sample(noise, labels)
        first = next(value for value in network.parameters() if value.ndim == 4 and value.shape[1] > 1)
        model.sampling_on("cpu")
        assert first.is_contiguous(memory_format=torch.channels_last) is laid_out
        assert_close(model.sample(noise, labels), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "facts", "expected"),
    [
        ("cuda", {"precision": "bf16-mixed"}, torch.bfloat16),
        ("cuda", {}, None),
        ("cpu", {"precision": "bf16-mixed"}, None),
    ],
)
def test_on_cuda_a_run_in_mixed_precision_is_sampled_as_it_was_measured(device, facts, expected, monkeypatch):
    model = GenerativeModel.student(denoiser(), 2.5, facts)
    monkeypatch.setattr(GenerativeModel, "device", torch.device(device))
    monkeypatch.setattr(GenerativeModel, "to", lambda self, _: self)
    assert model.sampling_on(device).autocast is expected
