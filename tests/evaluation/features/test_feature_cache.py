"""What real samples give is the same from the folder that keeps it, and not found again where anything differs."""

import contextlib
import copy
import functools
import importlib.util
import io
import linecache
import sys
from dataclasses import dataclass

import pytest
import torch
from tiny_runs import GivenData
from torch import nn

from fdistill.data import Digits
from fdistill.evaluation.comparison import TrainingComparison
from fdistill.evaluation.features import ClassifierFeatures, FeatureCache, ModuleFeatures, PixelFeatures
from fdistill.evaluation.features import classifier as classifier_file
from fdistill.evaluation.features.cache import user_cache
from fdistill.evaluation.metrics import FrechetDistance, MemorizedFraction
from fdistill.sampling import GDDIM, Heun

pytestmark = pytest.mark.system  # seconds, too many for make check


class Powers(nn.Module):
    """Features whose argument is no weight."""

    def __init__(self, power):
        super().__init__()
        self.power = power
        self.weight = nn.Parameter(torch.linspace(0.5, 1.0, 64))

    def forward(self, x):
        return (x.flatten(1) * self.weight).abs() ** self.power


EXTRACTORS = {
    "classifier": lambda: ClassifierFeatures(epochs=1),
    "pixels": lambda: PixelFeatures(),
    "module": lambda: ModuleFeatures(Powers(2)),
}
every_extractor = pytest.mark.parametrize("build", EXTRACTORS.values(), ids=EXTRACTORS)


@pytest.fixture(scope="module")
def real():
    train = Digits().train_samples.copied()
    return train.x[:96], train.classes[:96]


def features(extractor, real, seed=0, n=70):
    extractor.prepare(*real, 10, seed)
    return extractor.extract(real[0][:n], keep=True)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@every_extractor
def test_kept_features_are_those_that_are_computed_bit_for_bit(build, real, tmp_path, monkeypatch):
    plain, state = build(), torch.random.get_rng_state()
    expected = features(plain, real)
    first = build().keep_in(tmp_path)
    assert torch.equal(features(first, real), expected)
    assert len(names(tmp_path)) == 2
    monkeypatch.setattr(classifier_file, "train_classifier", None)
    again = build().keep_in(tmp_path)
    monkeypatch.setattr(type(again), "raw_features", None)
    assert torch.equal(features(again, real), expected)
    monkeypatch.undo()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (again.name, again.sample_shape) == (plain.name, plain.sample_shape)
    other = real[0][70:]
    assert torch.equal(again.extract(other), plain.extract(other))
    if plain.classify(expected) is not None:
        assert torch.equal(again.classify(expected), plain.classify(expected))


def test_generated_samples_are_not_kept(real, tmp_path):
    extractor = PixelFeatures().keep_in(tmp_path)
    extractor.prepare(*real, 10, 0)
    extractor.extract(real[0][:8])
    assert len(names(tmp_path)) == 1


class Keeps(nn.Module):
    """A module that keeps something that is no weight."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def forward(self, x):
        return x.flatten(1)


@dataclass
class Settings:
    size: int


PAIRS = {
    "tensor": (torch.zeros(3), torch.ones(3)),
    "tensor in a list": ([torch.zeros(3)], [torch.ones(3)]),
    "function": (torch.nn.functional.relu, torch.nn.functional.gelu),
    "built-in": (torch.abs, torch.square),
    "keys": ({1: 2}, {1: 3}),
    "dtype": (torch.float32, torch.bfloat16),
    "object": (Settings(size=1), Settings(size=2)),
    "module that is not registered": ([Powers(1)], [Powers(2)]),
    "described": (Heun(), GDDIM(0.5)),
    "type of a number": (1, 1.0),
    "class": (nn.ReLU, nn.GELU),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_whatever_a_module_keeps_tells_it_from_others(pair, real, tmp_path):
    def key(kept):
        return FeatureCache(tmp_path).key("features", Keeps(kept), {"x": real[0]})

    one, other = map(key, pair)
    assert one != other
    assert [key(kept) for kept in pair] == [one, other]
    if not callable(pair[0]):
        assert key(copy.deepcopy(pair[0])) == one


def test_the_precision_of_products_makes_other_features_and_the_mode_none(real, tmp_path):
    module, cache = Keeps(1), FeatureCache(tmp_path)
    plain = cache.key("features", module, {"x": real[0]})
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert cache.key("features", module, {"x": real[0]}) != plain
    finally:
        torch.set_float32_matmul_precision(before)
    assert cache.key("features", module.train(), {"x": real[0]}) == plain


@pytest.mark.parametrize("kept", [torch.Generator(), lambda x: x + 1, functools.partial(torch.add, 1), {1, 2}])
def test_what_cannot_be_seen_is_refused_in_one_line(kept, real, tmp_path):
    with pytest.raises(ValueError, match="feature_cache") as error:
        features(ModuleFeatures(Keeps(kept)).keep_in(tmp_path), real)
    assert "\n" not in str(error.value)


def test_an_extractor_whose_code_changes_is_another_one(real, tmp_path):
    keys = []
    for factor in ("2", "3"):
        (tmp_path / "changing.py").write_text(
            "from fdistill.evaluation.features import PixelFeatures\n"
            f"class Changing(PixelFeatures):\n    def raw_features(self, x):\n        return {factor} * x.flatten(1)\n"
        )
        linecache.clearcache()
        spec = importlib.util.spec_from_file_location("changing", tmp_path / "changing.py")
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "changing", module)
            spec.loader.exec_module(module)
            keys.append(FeatureCache(tmp_path).key("features", module.Changing(), {"x": real[0]}))
    assert keys[0] != keys[1]


def test_two_processes_find_the_same_name(stock_process, tmp_path):
    code = (
        "import sys, torch; from fdistill.evaluation.features import FeatureCache, ClassifierFeatures; "
        "from diffusers import AutoencoderKL; samples = {'x': torch.ones(2, 3)}; torch.manual_seed(0); "
        "cache = FeatureCache(sys.argv[1]); print(cache.key('a', ClassifierFeatures(epochs=3), samples), "
        "cache.key('b', AutoencoderKL(block_out_channels=(8,), norm_num_groups=4), samples))"
    )
    said = io.StringIO()
    with torch.random.fork_rng(), contextlib.redirect_stdout(said), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["", str(tmp_path)])
        exec(code, {})  # here texts have other hashes than there
    assert stock_process(code, tmp_path).out == said.getvalue()


CHANGES = {
    "samples": lambda build, real: features(build(), (real[0] * 0.999, real[1])),
    "one label": lambda build, real: features(build(), (real[0], real[1].roll(1))),
    "seed": lambda build, real: features(build(), real, seed=1),
    "argument": lambda build, real: features(build(epochs=2), real),
    "threads": lambda build, real: with_threads(2, lambda: features(build(), real)),
}


def with_threads(n, compute):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        return compute()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_the_features_depend_on_makes_other_ones(change, real, tmp_path):
    def build(epochs=1):
        return ClassifierFeatures(epochs).keep_in(tmp_path)

    features(build(), real)
    before = names(tmp_path)
    features(build(), real)
    assert names(tmp_path) == before
    change(build, real)
    assert len(names(tmp_path)) == 2 * len(before)


def test_modules_are_told_apart_by_weights_arguments_and_layer(real, tmp_path):
    def count(module, **arguments):
        features(ModuleFeatures(module, **arguments).keep_in(tmp_path), real)
        return len(names(tmp_path))

    other = Powers(2)
    other.weight.data[3] += 1e-6
    assert [count(Powers(2)), count(Powers(2)), count(Powers(3)), count(other)] == [2, 2, 4, 6]
    chain = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Tanh())
    assert [count(chain, layer="0"), count(copy.deepcopy(chain), layer="1"), count(chain, std=(0.4,))] == [8, 10, 12]


def test_a_file_that_changed_is_refused_in_one_line(real, tmp_path):
    expected = features(PixelFeatures().keep_in(tmp_path), real)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for spoiled in (whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1]), b"", whole[:40]):
            path.write_bytes(spoiled)
            with pytest.raises(
                ValueError, match=f"{path} keeps features .*: remove it, and it is made again$"
            ) as error:
                features(PixelFeatures().keep_in(tmp_path), real)
            assert "\n" not in str(error.value)
        path.unlink()
        assert torch.equal(features(PixelFeatures().keep_in(tmp_path), real), expected)


def test_a_file_under_another_name_is_refused(real, tmp_path):
    features(PixelFeatures().keep_in(tmp_path), real)
    first, second = sorted(tmp_path.iterdir())
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match="changed"):
        features(PixelFeatures().keep_in(tmp_path), real)


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        PixelFeatures().keep_in(tmp_path / "file" / "below")
    assert FeatureCache(tmp_path / "new" / "folder").read("nothing") is None


def test_a_run_measures_the_same_with_what_was_kept(tmp_path, real, monkeypatch):
    data = GivenData(real[0], num_classes=10)
    metrics = {"frechet_distance": FrechetDistance(), "memorized_fraction": MemorizedFraction()}

    def measured(extractor):
        probe = TrainingComparison(data, extractor, metrics, 40, seed=0)
        return probe.measure(probe.other_half), probe.floor(), probe.reference.features

    expected = measured(ClassifierFeatures(epochs=1))
    measured(ClassifierFeatures(epochs=1).keep_in(tmp_path))
    monkeypatch.setattr(classifier_file.ConvClassifier, "features", None)
    again = measured(ClassifierFeatures(epochs=1).keep_in(tmp_path))
    assert again[:2] == expected[:2]
    assert torch.equal(again[2], expected[2])


def test_what_was_learned_is_kept_in_the_users_cache_by_default_and_features_are_not(real, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = features(ClassifierFeatures(epochs=1).keep_learned(), real)
    features(PixelFeatures().keep_learned(), real)
    assert [name.split("-")[0] for name in names(tmp_path / "fdistill")] == ["fitted"]
    monkeypatch.setattr(classifier_file, "train_classifier", None)
    assert torch.equal(features(ClassifierFeatures(epochs=1).keep_learned(), real), expected)


def test_a_cache_that_cannot_be_written_is_told_and_costs_nothing_else(real, tmp_path, monkeypatch):
    (tmp_path / "fdistill").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME"):
        extractor = ClassifierFeatures(epochs=1).keep_learned()
    assert torch.equal(features(extractor, real), features(ClassifierFeatures(epochs=1), real))


@pytest.mark.parametrize("named", ["", "relative/path"])
def test_only_an_absolute_cache_folder_counts(named, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "fdistill"
