"""Guidance is the score of a tilted density where it acts, the denoiser itself where not, and costs what it says."""

import json
import math

import pytest
import torch
from tiny_runs import exact, mlp
from torch.testing import assert_close

from fdistill.core.weight_files import CheckpointError
from fdistill.data.teacher_pairs import TeacherPairs, facts_of
from fdistill.io.checkpoints import model_from_record, model_record, model_weights
from fdistill.io.export import export_folder
from fdistill.io.load import load_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.models.networks import Encoding, Network
from fdistill.sampling import GDDIM, Euler, Heun, PredictorCorrector, Restart
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.paths import DDPMPath
from fdistill.theory.preconditioning import EpsPrediction
from fdistill.training.discrimination import NoisedInput, evaluate

MODEL = exact([[-1.0, 0.3], [1.0, 0.0]], [0.3, 0.2])
WORSE = exact([[0.1, 0.2]], [1.1])
X = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LEVELS = torch.logspace(-1, 1, 64, dtype=torch.float64)
LABELS = torch.arange(64) % 3


def gaussian_images():
    """Denoisers of images by their prediction of the noise, of which each entry has another direction."""
    path = DDPMPath()

    class Noise(Network):
        sample_shape, num_classes, feature_channels = (3, 4, 6), 0, (3,)

        def __init__(self, slope: float):
            super().__init__()
            self.slope = slope

        def encode(self, x, noise, condition):
            return Encoding((x,), x)

        def decode(self, encoding):
            return (self.slope * encoding.state).sin() + self.slope

    return lambda slope: Denoiser(Noise(slope), EpsPrediction(path, 999.0))


def conditional(seed=0):
    return mlp(num_classes=3, seed=seed).double().eval()


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1.0, 1.7, 4.0])
def test_autoguidance_is_the_score_of_the_two_densities_in_powers_scale_and_one_minus_scale(scale):
    """s = grad ln (p^w p_guide^(1 - w)) (arXiv 2406.02507, section 3)."""
    x = X.clone().requires_grad_()
    tilted = scale * MODEL.network.log_prob(x, LEVELS) + (1 - scale) * WORSE.network.log_prob(x, LEVELS)
    (score,) = torch.autograd.grad(tilted.sum(), x)
    guided = Guidance(scale, guide=WORSE)(MODEL, X, LEVELS)
    assert_close((guided - X) / LEVELS.square()[:, None], score, rtol=1e-9, atol=1e-9)


def test_scale_one_is_the_condition_zero_is_no_class_and_it_is_affine_in_the_scale():
    denoiser = conditional()
    at = {scale: Guidance.of(scale)(denoiser, X, LEVELS, LABELS) for scale in (0, 1, 2, 3.5)}
    assert torch.equal(at[1], denoiser(X, LEVELS, LABELS))
    assert_close(at[0], denoiser(X, LEVELS, torch.full((64,), 3)))
    assert_close(at[2] - at[1], at[1] - at[0])
    assert_close(at[3.5], at[0] + 3.5 * (at[1] - at[0]))
    assert not torch.allclose(at[0], at[1])


def test_a_guide_sees_the_classes_where_it_has_them():
    denoiser, guide = conditional(), conditional(seed=1)
    guided = Guidance(2.0, guide=guide)(denoiser, X, LEVELS, LABELS)
    assert_close(guided, 2 * denoiser(X, LEVELS, LABELS) - guide(X, LEVELS, LABELS))


def test_without_classes_and_without_a_guide_it_changes_nothing():
    assert torch.equal(Guidance.of(4.0)(MODEL, X, LEVELS), MODEL(X, LEVELS))
    assert Guidance.of(4.0).cost(MODEL, 1.0) == 1


def test_outside_the_interval_the_denoiser_is_as_it_is_and_inside_it_is_guided():
    denoiser, interval = conditional(), Guidance(3.0, 0.4, 2.0)
    guided = interval(denoiser, X, LEVELS, LABELS)
    inside = (LEVELS > 0.4) & (LEVELS <= 2.0)
    assert 10 < inside.sum() < 54
    assert torch.equal(guided[~inside], denoiser(X, LEVELS, LABELS)[~inside])
    assert torch.equal(guided[inside], Guidance.of(3.0)(denoiser, X, LEVELS, LABELS)[inside])


@pytest.mark.parametrize("guidance", [Guidance(3.0), Guidance(3.0, 0.4, 2.0), Guidance(1.0, 0.4, 2.0)], ids=str)
@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_level_for_all_costs_what_is_said_and_gives_what_a_level_each_gives(guidance, sigma, dtype):
    denoiser, calls, x = conditional().to(dtype), [], X.to(dtype)
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    shared = guidance(denoiser, x, sigma, LABELS)
    assert (
        len(calls)
        == guidance.cost(denoiser, sigma)
        == 1 + (guidance.scale != 1 and guidance.sigma_low < sigma <= guidance.sigma_high)
    )
    assert torch.equal(shared, guidance(denoiser, x, torch.full((64,), sigma, dtype=dtype), LABELS))


@pytest.mark.parametrize("features", ["nothing", "value"])
@pytest.mark.parametrize(
    "guidance",
    [1.0, 2.5, Guidance(2.5, 0.4, 2.0), Guidance(2.0, guide=conditional(1))],
    ids=["1", "2.5", "part", "auto"],
)
def test_an_evaluated_denoiser_is_guided_alike_with_and_without_its_features(guidance, features):
    denoiser = conditional()
    prediction = evaluate(denoiser, NoisedInput(X, LEVELS, LABELS), "value", features, guidance)
    assert_close(prediction.denoised, Guidance.of(guidance)(denoiser, X, LEVELS, LABELS))
    assert (prediction.half is None) == (features == "nothing")


@pytest.mark.parametrize(
    "sampler",
    [Euler(), Heun(), Heun(churn=5.0), GDDIM(1.0), PredictorCorrector(), Restart(0.3, 2.0, 2, 3)],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("guided_by", ["itself", "a guide"])
def test_a_model_counts_what_its_sampler_and_guidance_cost(sampler, guided_by):
    guide = None if guided_by == "itself" else mlp(num_classes=3, seed=1)
    denoiser, calls = mlp(num_classes=3), []
    for network in filter(None, (denoiser, guide)):
        network.register_forward_hook(lambda *_: calls.append(1))
    model = GenerativeModel.teacher(denoiser, 8, 0.05, 9.0, Guidance(2.0, 0.3, 3.0, guide), sampler=sampler)
    model.sample(model.noise(5, 0), model.labels(5))
    assert len(calls) == model.evaluations
    unguided, everywhere = (GenerativeModel.teacher(denoiser, 8, 0.05, 9.0, g, sampler=sampler) for g in (1.0, 2.0))
    assert unguided.evaluations < model.evaluations < everywhere.evaluations == 2 * unguided.evaluations


def test_an_autoguided_ode_ends_on_the_tilted_gaussian_between_the_two():
    """Of wide data, p^w p_guide^(1 - w) is Gaussian at every level, and so are the samples: only their mean moves."""
    model = GenerativeModel.teacher(exact([[1.0]], [0.5]), 60, 0.01, 40.0, Guidance(2.0, guide=exact([[0.4]], [0.5])))
    samples = model.sample(model.noise(2000, 0))
    assert samples.mean().item() == pytest.approx(1.6, abs=0.05)  # 0.4 + 2 (1 - 0.4)
    assert samples.std().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("norm", ["sample", "row", "token"])
def test_a_rescaled_prediction_has_the_size_of_the_unguided_one_in_its_direction(norm):
    """Of D = x - sigma F, which the noise-predicting preconditioning of a path is."""
    images = gaussian_images()
    x, levels = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(1)), torch.linspace(0.1, 8.0, 5)
    predictions = {}
    for share in (0.0, 0.5, 1.0):
        guided = Guidance(4.0, guide=images(0.2), rescale=share, norm=norm)(images(1.0), x, levels)
        predictions[share] = (x - guided) / levels.reshape(-1, 1, 1, 1)
    own = (x - images(1.0)(x, levels)) / levels.reshape(-1, 1, 1, 1)
    parts = {
        "sample": lambda f: (f - f.mean((1, 2, 3), keepdim=True)).flatten(1),
        "row": lambda f: f,
        "token": lambda f: f.unflatten(3, (3, 2)).unflatten(2, (2, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3),
    }[norm]
    assert_close(parts(predictions[1.0]).norm(dim=-1), parts(own).norm(dim=-1), rtol=1e-4, atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(parts(predictions[1.0]), parts(predictions[0.0]), dim=-1)
    assert_close(cosine, torch.ones_like(cosine))
    assert_close(predictions[0.5], (predictions[0.0] + predictions[1.0]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "acts"), [(4.0, True), (0.5, False)])
def test_a_cap_shortens_predictions_that_are_longer_than_a_share_of_the_unguided_ones(scale, acts):
    images = gaussian_images()
    x, levels = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(1)), torch.linspace(0.1, 8.0, 5)
    free, capped = (  # sigma F of each
        x - Guidance(scale, guide=images(0.2), rescale=share, norm="cap")(images(1.0), x, levels)
        for share in (0.0, 0.9)
    )
    most = 0.9 * (x - images(1.0)(x, levels)).flatten(1).norm(dim=1)
    assert bool((free.flatten(1).norm(dim=1) > most).all()) == acts
    expected = free * (most / free.flatten(1).norm(dim=1)).clamp_max(1).reshape(-1, 1, 1, 1)
    assert_close(capped, expected)


def test_a_record_keeps_interval_guide_and_sampler(tmp_path):
    guidance = Guidance(2.0, 0.3, math.inf, mlp(num_classes=3, seed=1).eval(), 0.5, "row")
    made = GenerativeModel.teacher(mlp(num_classes=3), 4, 0.1, 9.0, guidance, {"a": 1}, GDDIM(1.2))
    record = json.loads(json.dumps(model_record(made), allow_nan=False))
    found = model_from_record(record, model_weights(made), "somewhere")
    read = load_model(export_folder(made, tmp_path / "folder"))
    again = load_model(export_folder(read, tmp_path / "again"))
    noise, labels = made.noise(6, 0), made.labels(6)
    for model in (found, read, again):
        assert model.sampler.spec() == made.sampler.spec()
        assert (model.guidance.interval, model.guidance.rescale, model.guidance.norm) == ((0.3, math.inf), 0.5, "row")
        assert not model.guidance.guide.training
        assert model.evaluations == made.evaluations
        assert torch.equal(model.sample(noise, labels), made.sample(noise, labels))


def test_a_plain_scale_stays_a_number_and_a_record_of_old_times_is_heun():
    made = GenerativeModel.teacher(mlp(), 4, 0.1, 9.0, 2.0)
    record = model_record(made)
    assert record["guidance"] == 2.0
    del record["sampler"], record["decoder"]
    found = model_from_record(record, made.denoiser.state_dict(), "somewhere")
    assert type(found.sampler) is Heun
    assert not found.sampler.is_stochastic
    assert found.guidance == 2.0


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda record: record.update(sampler={"class_path": "os.system", "init_args": {}}), "Sampler"),
        (lambda record: record.update(sampler=3), "class_path"),
        (lambda record: record.update(guidance={"scale": 2.0}), "interval"),
        (lambda record: record["guidance"].update(interval=[2.0, 1.0]), "sigma_high"),
        (lambda record: record["guidance"].update(interval=3), "model"),
        (lambda record: record["guidance"].update(guide=3), "Denoiser"),
        (lambda record: record.update(kind="student"), "Heun"),
    ],
)
def test_spoiled_records(spoil, words):
    made = GenerativeModel.teacher(mlp(), 4, 0.1, 9.0, Guidance(2.0, 0.3, 1.0, mlp(seed=1)))
    record = model_record(made)
    record["sigmas"] = record["sigmas"][:-1]  # what a student's may be, too
    spoil(record)
    with pytest.raises(CheckpointError, match=words):
        model_from_record(record, model_weights(made), "somewhere")


def test_weights_of_the_guide_are_needed():
    made = GenerativeModel.teacher(mlp(), 4, 0.1, 9.0, Guidance(2.0, guide=mlp(seed=1)))
    with pytest.raises(CheckpointError, match="guide"):
        model_from_record(model_record(made), made.denoiser.state_dict(), "somewhere")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Guidance.of(math.nan), "finite"),
        (lambda: Guidance.of(math.inf), "got inf"),
        (lambda: Guidance(2.0, 1.0, 1.0), "sigma_high"),
        (lambda: Guidance(2.0, -1.0), "got -1.0 and inf"),
        (lambda: Guidance(2.0, math.nan), "got nan and inf"),
        (lambda: Guidance.limited(1.0, [0.1, 1.0], None), "scale"),
        (lambda: Guidance.limited(1.0, None, WORSE), "scale"),
        (lambda: Guidance.limited(2.0, [0.1], None), "high"),
        (
            lambda: GenerativeModel.teacher(mlp(), 4, 0.1, 9.0, Guidance(2.0, guide=mlp(dim=3))),
            "condition",
        ),
        (
            lambda: GenerativeModel.teacher(mlp(), 4, 0.1, 9.0, Guidance(2.0, guide=mlp(num_classes=3))),
            "classes",
        ),
        (
            lambda: GenerativeModel.teacher(mlp(num_classes=2), 4, 0.1, 9.0, Guidance(2.0, guide=mlp(num_classes=3))),
            "classes",
        ),
    ],
)
def test_what_cannot_guide_is_refused_in_one_line(build, words):
    with pytest.raises(ValueError, match=words) as error:
        build()
    assert "\n" not in str(error.value)


def test_a_network_that_knows_no_absent_class_is_refused_before_it_samples():
    denoiser = mlp(num_classes=3)
    denoiser.network.knows_no_class = False
    with pytest.raises(ValueError, match="guidance"):
        GenerativeModel.teacher(denoiser, 4, 0.1, 9.0, 2.0)
    assert GenerativeModel.teacher(denoiser, 4, 0.1, 9.0, Guidance(2.0, guide=mlp())).evaluations == 14


def test_a_model_takes_its_guide_where_it_goes():
    model = GenerativeModel.teacher(mlp(), 4, 0.1, 9.0, Guidance(2.0, guide=mlp(seed=1)))
    model.to("meta")
    assert {p.device.type for p in model.guidance.guide.parameters()} == {"meta"}


def test_pairs_tell_how_they_were_guided_and_are_of_the_same_teacher_only():
    guidance = Guidance(2.0, 0.3, 3.0, mlp(seed=1))
    model = GenerativeModel.teacher(mlp(), 4, 0.1, 9.0, guidance)
    pairs = TeacherPairs.make(model, 6, 0, "a")
    assert pairs.facts["guidance"] == "2.0 in (0.3, 3.0] by a guide"
    pairs.check_fits((2,), {}, guidance)
    for other in (2.0, 1.0, Guidance(2.0, 0.3, 3.0), Guidance(2.0, guide=mlp())):
        with pytest.raises(ValueError, match="guide"):
            pairs.check_fits((2,), {}, other)
    reweighed = GenerativeModel.teacher(mlp(), 4, 0.1, 9.0, Guidance(2.0, 0.3, 3.0, mlp(seed=2)))
    assert facts_of(reweighed, 6, 0, "a")["model"] != pairs.facts["model"]


@pytest.mark.parametrize("sampler", [GDDIM(0.5), Heun(churn=1.0), PredictorCorrector()], ids=lambda s: type(s).__name__)
def test_pairs_of_a_sampler_that_draws_noise_are_refused(sampler):
    model = GenerativeModel.teacher(mlp(), 4, 0.1, 9.0, sampler=sampler)
    with pytest.raises(ValueError, match=f"draws noise .{type(sampler).__name__}.; export it with --sampler Heun"):
        TeacherPairs.make(model, 4, 0)


def test_a_student_has_no_sampler():
    with pytest.raises(ValueError, match="Euler"):
        GenerativeModel(mlp(), "student", torch.tensor([2.0]), sampler=Euler())
    assert GenerativeModel.student(mlp(), 2.0).sampler is None


def test_a_teacher_samples_on_a_grid_of_its_own():
    grid = torch.tensor([5.0, 1.0, 0.2, 0.0], dtype=torch.float64)
    model = GenerativeModel.teacher(mlp(), 18, 0.1, 9.0, sampler=Euler(), sigmas=grid)
    assert model.evaluations == 3
    assert torch.equal(model.sigmas, grid)
    with pytest.raises(ValueError, match="falls"):
        GenerativeModel.teacher(mlp(), 18, 0.1, 9.0, sigmas=grid.flip(0))
    with pytest.raises(ValueError, match="comes down to: expected one in"):
        GenerativeModel.teacher(mlp(), 18, 0.1, 9.0, sampler=Restart(0.01, 0.02), sigmas=grid)
