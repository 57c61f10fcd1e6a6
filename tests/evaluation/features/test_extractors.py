"""What all feature extractors promise, and what each of them computes."""

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from fdistill.data import Digits, InMemorySplit
from fdistill.evaluation.features import (
    ClassifierFeatures,
    FeatureExtractor,
    ModuleFeatures,
    PixelFeatures,
    compared_rows,
    default_extractor,
)
from fdistill.evaluation.metrics import frechet_distance


class Convolution(nn.Module):
    """A network with everything that behaves differently in training: batch norm and dropout."""

    def __init__(self, channels=1):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = nn.Conv2d(channels, 6, 3, stride=2)
            self.norm, self.drop, self.head = nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.stem(x)).relu().mean((2, 3))))


@pytest.fixture(scope="module")
def digits():
    return Digits().train_samples.copied()


@pytest.fixture(scope="module")
def classifier(digits):
    extractor = ClassifierFeatures(epochs=10)
    extractor.prepare(digits.x, digits.classes, 10, seed=0)
    return extractor


@pytest.fixture(params=["pixels", "classifier", "module", "layer"])
def extractor(request, digits):
    if request.param == "classifier":
        return request.getfixturevalue("classifier")
    found = {
        "pixels": lambda: PixelFeatures(),
        "module": lambda: ModuleFeatures(Convolution(), resolution=12),
        "layer": lambda: ModuleFeatures(Convolution(), layer="stem"),
    }[request.param]()
    found.prepare(digits.x, digits.classes, 10, seed=0)
    return found


def prepared(extractor, x):
    extractor.prepare(x, None, None, seed=0)
    return extractor


def points(n=200, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def images(n=20, channels=3, side=16, seed=0):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_real_training_features_have_mean_zero_and_mean_variance_one(extractor, digits):
    features = extractor.extract(digits.x).double()
    torch.testing.assert_close(features.mean(0), torch.zeros(features.shape[1]).double(), rtol=0, atol=1e-6)
    assert features.var(0).mean().item() == pytest.approx(1, rel=1e-6)


def test_features_do_not_depend_on_the_batch_size(extractor, digits):
    x = digits.x[:50]
    torch.testing.assert_close(extractor.extract(x, batch_size=7), extractor.extract(x), rtol=1e-4, atol=1e-5)


def test_features_are_float32_without_gradient_and_named(extractor, digits):
    x = digits.x[:5].clone().requires_grad_()
    features = extractor.extract(x)
    assert (features.dtype, features.requires_grad, features.ndim) == (torch.float32, False, 2)
    assert extractor.name.endswith("scaled to unit mean variance on the training set")


def test_a_parent_in_training_mode_changes_no_feature(extractor, digits):
    before = extractor.extract(digits.x[:20])
    nn.Sequential(extractor).train()
    assert torch.equal(extractor.extract(digits.x[:20]), before)


def test_samples_that_do_not_fit_stop_the_extraction(extractor, digits):
    with pytest.raises(ValueError, match=r"expected \[n, 1, 8, 8\] with n >= 1, got \[3, 1, 4, 8\]"):
        extractor.extract(digits.x[:3, :, :4])
    with pytest.raises(ValueError, match=r"got \[0, 1, 8, 8\]"):
        extractor.extract(digits.x[:0])
    broken = digits.x[:9].clone()
    broken[2, 0, 0, 0], broken[5] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="got 2 of 9"):
        extractor.extract(broken)


@pytest.mark.parametrize("make", [PixelFeatures, ClassifierFeatures, lambda: ModuleFeatures(nn.Identity())])
def test_nothing_is_extracted_before_preparation(make):
    extractor = make()
    for use in (lambda: extractor.extract(points()), lambda: extractor.name, lambda: extractor.sample_shape):
        with pytest.raises(ValueError, match="prepare"):
            use()


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.zeros(5, 2), "samples"),
        (torch.full((3000, 2), 0.1), "samples"),
        (torch.zeros(1, 2), "N >= 2, got"),
        (torch.zeros(5), "N >= 2, got"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), "got 1 of 2"),
    ],
)
def test_real_samples_that_span_no_space_are_refused_and_nothing_is_half_prepared(x, match):
    extractor = prepared(PixelFeatures(), points())
    with pytest.raises(ValueError, match=match):
        extractor.prepare(x, None, None, seed=0)
    if x.ndim == 2 and len(x) > 1 and x.isfinite().all():
        with pytest.raises(ValueError, match="prepare"):
            extractor.extract(points())


def test_moments_are_exact_far_from_the_origin():
    x = points(5000).double() + torch.tensor([1e4, -1e4, 0.0]).double()
    extractor = prepared(PixelFeatures(), x)
    assert extractor.scale.item() == pytest.approx(x.float().double().var(0).mean().sqrt().item(), rel=1e-6)
    torch.testing.assert_close(extractor.mean.double(), x.mean(0), rtol=1e-6, atol=1e-6)


def test_point_features_are_a_similarity_of_the_points():
    x, other = 3 * points() + 5, points(seed=1)
    extractor = prepared(PixelFeatures(), x)
    torch.testing.assert_close(extractor.extract(other) * extractor.scale + extractor.mean, other)
    torch.testing.assert_close(
        torch.cdist(extractor.extract(other), extractor.extract(x)) * extractor.scale, torch.cdist(other, x)
    )
    assert extractor.classify(extractor.extract(other)) is None


def test_frechet_distance_times_squared_scale_is_the_one_of_the_raw_features():
    x, other = 3 * points() + 5, points(seed=1)
    extractor = prepared(PixelFeatures(), x)
    distance = frechet_distance(extractor.extract(other), extractor.extract(x)) * extractor.scale.double() ** 2
    assert float(distance) == pytest.approx(float(frechet_distance(other, x)), rel=1e-5)


def test_large_images_are_averaged_down_and_small_ones_are_not():
    small = images(channels=1, side=32)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(
        prepared(PixelFeatures(), large).extract(large), prepared(PixelFeatures(), small).extract(small)
    )
    assert prepared(PixelFeatures(), images(side=40)).extract(images(side=40)).shape == (20, 3 * 18 * 18)
    assert prepared(PixelFeatures(max_values=2), images()).extract(images()).shape == (20, 3)  # at least one pixel
    wide = points(30, 2000)
    assert prepared(PixelFeatures(), wide).extract(wide).shape == (30, 2000)  # points are never averaged


def test_names_tell_what_is_compared():
    assert prepared(PixelFeatures(), points()).name.startswith("all 3 coordinates,")
    assert prepared(PixelFeatures(), images(side=8)).name.startswith("pixel values,")
    assert prepared(PixelFeatures(), images(side=40)).name.startswith("pixels averaged down to 18 x 18,")
    assert prepared(ModuleFeatures(Convolution(3), 8, layer="stem"), images()).name.startswith(
        "layer stem of Convolution at 8 x 8,"
    )


def test_classes_are_read_from_features_as_the_network_reads_them_from_images(classifier, digits):
    read = classifier.classify(classifier.extract(digits.x))
    assert torch.equal(read, classifier.classifier(digits.x).argmax(1))
    assert read.dtype == torch.int64
    assert (read == digits.classes).double().mean() > 0.9


def test_classes_are_read_from_nothing_else(classifier):
    with pytest.raises(ValueError, match=r"expected \[n, 32\], got \[4, 31\]"):
        classifier.classify(torch.zeros(4, 31))
    with pytest.raises(ValueError, match="prepare"):
        ClassifierFeatures().classify(torch.zeros(4, 32))


def test_the_same_seed_gives_the_same_features_bit_for_bit_and_draws_nothing_globally(digits):
    state = torch.get_rng_state()
    first, second, other = ClassifierFeatures(1), ClassifierFeatures(1), ClassifierFeatures(1)
    for extractor, seed in ((first, 5), (second, 5), (other, 6)):
        extractor.prepare(digits.x[:200], digits.classes[:200], 10, seed)
    x = digits.x[200:300]
    assert torch.equal(first.extract(x), second.extract(x))
    assert not torch.equal(first.extract(x), other.extract(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_preparation_works_where_gradients_are_off(digits):
    x, labels = digits.x[:200], digits.classes[:200]
    outside, inside = ClassifierFeatures(1), ClassifierFeatures(1)
    outside.prepare(x, labels, 10, 0)
    with torch.inference_mode():
        inside.prepare(x.clone(), labels, 10, 0)
    assert torch.equal(inside.extract(x), outside.extract(x))
    assert torch.equal(inside.classify(inside.extract(x)), outside.classify(outside.extract(x)))


def test_steps_follow_the_number_of_images_up_to_a_budget_unless_epochs_are_given(monkeypatch, digits):
    seen = []

    def counted(x, labels, num_classes, seed, steps, device):
        seen.append(steps)
        return Classes()

    class Classes(nn.Module):
        def features(self, x):
            return x.flatten(1)[:, :32]

    monkeypatch.setattr("fdistill.evaluation.features.classifier.train_classifier", counted)
    x, labels = digits.x.repeat(2, 1, 1, 1), digits.classes.repeat(2)
    for epochs in (None, 7):
        extractor = ClassifierFeatures(epochs)
        extractor.prepare(x, labels, 10, seed=1)
        assert f"for {epochs or 77} epochs on 2,594 real images with seed 1" in extractor.name
    ClassifierFeatures().prepare(digits.x, digits.classes, 10, seed=1)
    assert seen == [77 * 41, 7 * 41, 100 * 21]
    pixels = torch.randint(0, 256, (70_000, 1, 8, 8), dtype=torch.uint8)
    many = InMemorySplit(pixels, torch.arange(70_000) % 10)
    extractor.epochs = None
    extractor.prepare(many, many.labels, 10, seed=1)
    assert seen[-1] == 3910
    assert "for 3,910 steps on 70,000 real images" in extractor.name
    assert len(compared_rows(many)) == len(compared_rows(many).unique()) == 50_000


@pytest.mark.parametrize(
    ("x", "labels", "match"),
    [
        (images(channels=1), None, "num_classes"),
        (images(side=6), torch.arange(20) % 2, "resolution"),
        (images()[..., :8], torch.arange(20) % 2, "images"),
        (points(20), torch.arange(20) % 2, "images"),
    ],
)
def test_a_classifier_needs_labelled_square_images(x, labels, match):
    with pytest.raises(ValueError, match=match):
        ClassifierFeatures().prepare(x, labels, 2, seed=0)


def test_a_module_sees_samples_as_they_are_unless_told_otherwise():
    x = images()
    torch.testing.assert_close(ModuleFeatures(nn.Flatten()).raw_features(x), x.flatten(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(ModuleFeatures(nn.Identity()).raw_features(points()), points(), rtol=0, atol=1e-6)


def test_a_module_sees_the_normalisation_it_was_trained_with():
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    x = images()
    wanted = torch.stack([((x[:, i] + 1) / 2 - mean[i]) / std[i] for i in range(3)], dim=1)
    found = ModuleFeatures(nn.Flatten(), mean=mean, std=std).raw_features(x)
    torch.testing.assert_close(found, wanted.flatten(1), rtol=1e-5, atol=1e-5)


def test_a_grey_image_fills_every_channel_of_the_module():
    grey = images(channels=1)
    found = ModuleFeatures(nn.Flatten(), mean=(0.4, 0.5, 0.6), std=(1, 1, 1)).raw_features(grey)
    colour = ModuleFeatures(nn.Flatten(), mean=(0.4, 0.5, 0.6), std=(1, 1, 1)).raw_features(grey.expand(-1, 3, -1, -1))
    assert torch.equal(found, colour)


def test_resizing_is_antialiased_and_stays_in_range():
    row = torch.tensor([-1.0, 1.0]).repeat(32)
    checkerboard = (row[:, None] * row).expand(2, 1, 64, 64)
    shrunk = ModuleFeatures(nn.Flatten(), resolution=8).raw_features(checkerboard).view(2, 8, 8)
    assert shrunk[:, 1:-1, 1:-1].abs().max() < 0.02  # without a low-pass filter every pixel would be -1 or 1
    edge = torch.ones(2, 1, 8, 8)
    edge[..., :4] = -1
    grown = ModuleFeatures(nn.Flatten(), resolution=32).raw_features(edge)
    assert grown.abs().max() == 1  # bicubic interpolation alone overshoots


def test_feature_maps_are_averaged_and_tokens_flattened():
    x = images(side=4)
    torch.testing.assert_close(ModuleFeatures(nn.Identity()).raw_features(x), x.mean((2, 3)), rtol=0, atol=1e-6)
    assert ModuleFeatures(nn.Flatten(2)).raw_features(x).shape == (20, 48)


def test_a_layer_is_what_the_module_computes_there():
    module, x = Convolution(3), images()
    extractor = ModuleFeatures(module, layer="norm")
    with torch.no_grad():
        wanted = module.norm(module.stem(x)).mean((2, 3))
    torch.testing.assert_close(extractor.raw_features(x), wanted, rtol=1e-5, atol=1e-5)
    assert not module.norm._forward_hooks


class Gives(nn.Module):
    """Gives a fixed thing, and has a layer that it does not use."""

    def __init__(self, output):
        super().__init__()
        self.output, self.idle = output, nn.Identity()

    def forward(self, x):
        return self.output


@pytest.mark.parametrize(
    ("module", "options", "match"),
    [
        (Gives((torch.zeros(20, 3),)), {}, "layer"),
        (Gives(torch.zeros(3, 4)), {}, r"got \[3, 4\]"),
        (Gives(torch.zeros(20)), {}, r"got \[20\]"),
        (Gives(torch.zeros(20, 3)), {"layer": "idle"}, "got NoneType"),
    ],
)
def test_modules_that_give_no_row_per_sample_are_refused(module, options, match):
    with pytest.raises(ValueError, match=match):
        ModuleFeatures(module, **options).prepare(images(), None, None, seed=0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PixelFeatures(0), "max_values"),
        (lambda: ClassifierFeatures(0), "epochs"),
        (lambda: ModuleFeatures(nn.Identity(), resolution=0), "resolution"),
        (lambda: ModuleFeatures(nn.Identity(), mean=(0.5, 0.5)), "mean"),
        (lambda: ModuleFeatures(nn.Identity(), std=(0.0,)), "std > 0"),
        (lambda: ModuleFeatures(Convolution(), layer="tail"), "stem"),
        (lambda: prepared(ModuleFeatures(nn.Identity(), 8), points()), "images"),
        (lambda: prepared(ModuleFeatures(nn.Identity(), mean=(0,) * 4, std=(1,) * 4), images()), "channels"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("shape", "num_classes", "kind"),
    [
        ((1, 8, 8), 10, ClassifierFeatures),
        ((3, 64, 64), 2, ClassifierFeatures),
        ((1, 8, 8), 0, PixelFeatures),
        ((1, 8, 8), 1, PixelFeatures),
        ((1, 8, 8), None, PixelFeatures),
        ((1, 7, 7), 10, PixelFeatures),
        ((1, 8, 16), 10, PixelFeatures),
        ((2,), 8, PixelFeatures),
    ],
)
def test_a_classifier_is_the_default_where_one_can_learn(shape, num_classes, kind):
    assert type(default_extractor(shape, num_classes)) is kind


@pytest.mark.parametrize(
    ("described", "kind"),
    [
        ({"class_path": "fdistill.evaluation.features.PixelFeatures", "init_args": {"max_values": 64}}, PixelFeatures),
        (
            {"class_path": "fdistill.evaluation.features.ClassifierFeatures", "init_args": {"epochs": 10}},
            ClassifierFeatures,
        ),
        (
            {
                "class_path": "fdistill.evaluation.features.ModuleFeatures",
                "init_args": {
                    "module": {"class_path": "torch.nn.Flatten"},
                    "resolution": 8,
                    "mean": [0.5],
                    "std": [0.25],
                },
            },
            ModuleFeatures,
        ),
    ],
)
def test_an_extractor_is_named_in_yaml(described, kind):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--extractor", type=FeatureExtractor)
    built = parser.instantiate_classes(parser.parse_object({"extractor": described})).extractor
    assert type(built) is kind


def test_what_a_module_of_ones_own_gives_is_what_is_compared():
    module, x = Convolution(3), images()
    extractor = prepared(ModuleFeatures(module), x)
    with torch.no_grad():
        raw = module(x)
    wanted = (raw - raw.mean(0)) / raw.var(0).mean().sqrt()
    torch.testing.assert_close(extractor.extract(x), wanted, rtol=1e-4, atol=1e-5)
