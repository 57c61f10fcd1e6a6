"""What every data module promises, checked on all of them: batches, splits, spec, statistics."""

import inspect
import io

import pytest
import torch
from idx_files import write_idx
from latent_folders import latents
from PIL import Image

import fdistill.data
from fdistill.data import Batch, Digits, GenerativeDataModule, IdxFolder, InMemorySplit, LatentFolder, PromptedLatents
from fdistill.sampling.grids import GivenGrid, KarrasGrid
from fdistill.theory.paths import VPLinear

pytestmark = pytest.mark.system  # seconds, too many for make check

MODULES = sorted(
    (c for c in vars(fdistill.data).values() if inspect.isclass(c) and issubclass(c, GenerativeDataModule)),
    key=lambda c: c.__name__,
)
CONCRETE = [
    c for c in MODULES if not inspect.isabstract(c) and c.has_real and c is not PromptedLatents
]  # tests/data/test_prompts.py has that of prompts


class Given(GenerativeDataModule):
    """Data that a test hands over."""

    num_classes = 0

    def __init__(self, x, held_out=None, batch_size=4):
        super().__init__(batch_size)
        self.x, self.held_out = x, x if held_out is None else held_out

    @property
    def sample_shape(self):
        return tuple(self.x.shape[1:])

    def load_splits(self):
        return tuple(InMemorySplit(x, torch.zeros(len(x), dtype=torch.long)) for x in (self.x, self.held_out))


@pytest.fixture(params=CONCRETE, ids=lambda c: c.__name__)
def build(request, tmp_path):
    """Build the data module, small, with further arguments if the test has any."""
    generator = torch.Generator().manual_seed(0)
    for i in range(20):
        pixels = torch.randint(256, (9, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i:02}.png")
    small = {"folder": str(tmp_path), "resolution": 8, "num_samples": 600, "num_held_out": 130}
    if issubclass(request.param, LatentFolder):
        small["folder"] = str(latents(tmp_path / "encoded"))
    if issubclass(request.param, IdxFolder):
        small["folder"] = str(write_idx(tmp_path / "idx", n=20))
    taken = inspect.signature(request.param).parameters

    def build(**arguments):
        if not arguments.keys() <= taken.keys():
            pytest.skip(f"{request.param.__name__} has no {', '.join(arguments)}: its files hold the split")
        return request.param(**{k: v for k, v in small.items() if k in taken}, **arguments)

    return build


def test_splits_have_the_announced_shape_range_and_type(build):
    data = build()
    shape, num_classes = data.sample_shape, data.num_classes  # known before the data is loaded
    for split in (data.train_samples.copied(), data.held_out_samples.copied()):
        assert isinstance(split, Batch)
        assert split.x.shape == (len(split.classes), *shape)
        assert split.x.dtype == torch.float32
        assert split.classes.dtype == torch.int64
        assert 0 <= split.classes.min() <= split.classes.max() < max(num_classes, 1)
        if len(shape) == 3 and data.decoder is None:
            assert -1 <= split.x.min() < split.x.max() <= 1


def test_the_same_arguments_give_the_same_data_and_another_split_seed_does_not(build):
    one, same, other = build(), build(), build(split_seed=1)
    for name in ("train_samples", "held_out_samples"):
        assert torch.equal(getattr(one, name).x, getattr(same, name).x)
        assert not torch.equal(getattr(one, name).x, getattr(other, name).x)


def test_seed_changes_the_order_and_not_the_data(build):
    one, other = build(seed=0), build(seed=1)
    assert torch.equal(one.train_samples.copied().x, other.train_samples.copied().x)
    assert not torch.equal(next(iter(one.train_dataloader())).x, next(iter(other.train_dataloader())).x)


def test_data_std_is_that_of_the_training_split(build):
    data = build()
    assert data.data_std() == pytest.approx(float(data.train_samples.copied().x.double().std(correction=0)), rel=1e-6)


def test_spec_survives_a_weights_only_file_and_rebuilds_the_data(build):
    data = build(batch_size=7, seed=3)
    file = io.BytesIO()
    torch.save(data.spec(), file)
    file.seek(0)
    spec = torch.load(file, weights_only=True)
    rebuilt = GenerativeDataModule.from_spec(spec)
    assert type(rebuilt) is type(data)
    assert rebuilt.spec() == data.spec() == spec
    assert torch.equal(rebuilt.held_out_samples.copied().x, data.held_out_samples.copied().x)
    assert torch.equal(next(iter(rebuilt.train_dataloader())).x, next(iter(data.train_dataloader())).x)


def test_modes_are_read_by_an_exact_rule_or_not_at_all(build):
    data = build()
    x, labels, _ = data.held_out_samples.copied()
    modes = data.read_modes(x)
    assert modes is None or (modes.dtype == torch.int64 and (modes == labels).double().mean() > 0.99)


def test_spec_names_the_public_class():
    assert Digits().spec()["class_path"] == "fdistill.data.Digits"


def test_from_spec_finds_a_subclass_that_is_imported():
    path = f"{Given.__module__}.Given"
    data = GenerativeDataModule.from_spec({"class_path": path, "init_args": {"x": torch.zeros(3, 2)}})
    assert isinstance(data, Given)


class Composed(Given):
    """Data that is told objects: one, some in a list, some in a dict of lists."""

    def __init__(self, path, grids, more):
        super().__init__(torch.zeros(3, 2))
        self.path, self.grids, self.more = path, grids, more


def test_data_that_is_told_objects_is_rebuilt_with_them(tmp_path):
    data = Composed(VPLinear(0.2, 10.0), [KarrasGrid(3), GivenGrid([2.0, 0.0])], {"a": [VPLinear()], "b": 1})
    torch.save(data.spec(), tmp_path / "spec.pt")
    rebuilt = GenerativeDataModule.from_spec(torch.load(tmp_path / "spec.pt", weights_only=True))
    assert (type(rebuilt), rebuilt.spec()) == (Composed, data.spec())
    assert [type(grid) for grid in rebuilt.grids] == [KarrasGrid, GivenGrid]
    assert (rebuilt.path.beta_max, type(rebuilt.more["a"][0]), rebuilt.more["b"]) == (10.0, VPLinear, 1)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"class_path": "os.system", "init_args": {"command": "true"}}, r"os\.system"),
        ({"class_path": "fdistill.data.GenerativeDataModule", "init_args": {}}, "expected one of"),
        ({"class_path": "fdistill.data.Digits", "init_args": {"size": 3}}, "size"),
        ({"init_args": {}}, "init_args"),
        ({"class_path": "fdistill.data.Digits", "init_args": [1]}, "init_args"),
        ("Digits", "init_args"),
    ],
)
def test_from_spec_refuses_what_is_no_known_data_module(spec, match):
    with pytest.raises(ValueError, match=match):
        GenerativeDataModule.from_spec(spec)


def test_spec_refuses_values_that_are_not_plain():
    with pytest.raises(TypeError, match="plain"):
        Given(torch.zeros(3, 2)).spec()


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"seed": -1}, {"num_workers": -1}, {"split_seed": -1}])
def test_arguments_out_of_range_are_refused_by_name(build, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        build(**bad)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_data_that_is_not_finite_is_counted_and_located(value):
    x = torch.zeros(10, 2, 3)
    x[4, 1, 2] = x[7, 0] = value
    with pytest.raises(ValueError, match="samples"):
        _ = Given(x).train_samples.copied()
    with pytest.raises(ValueError, match="sample"):
        Given(torch.zeros(10, 2, 3), held_out=x).setup("fit")


def test_splits_that_break_the_announcement_are_refused():
    with pytest.raises(ValueError, match="split"):
        _ = Given(torch.zeros(4, 2), held_out=torch.zeros(4, 3)).train_samples.copied()
    with pytest.raises(ValueError, match="sample"):
        _ = Given(torch.zeros(4, 2), held_out=torch.zeros(0, 2)).train_samples.copied()
    with pytest.raises(ValueError, match="index"):
        InMemorySplit(torch.zeros(4, 2), torch.zeros(3, dtype=torch.long))


def test_labels_outside_the_classes_are_refused():
    class Mislabelled(Given):
        def load_splits(self):
            return tuple(InMemorySplit(self.x, torch.ones(len(self.x), dtype=torch.long)) for _ in range(2))

    with pytest.raises(ValueError, match=r"expected \[0, 1\), got 1 to 1"):
        _ = Mislabelled(torch.zeros(4, 2)).train_samples.copied()
