"""What the standard metrics compute, of which samples and against what; and what they refuse."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from standard_libraries import FEATURES, FixedImages, Generator, pictures
from torch.nn import functional as F

from fdistill.evaluation.fid import FidSuite, Reference, clip, dinov2, inception, open_reference
from fdistill.evaluation.fid.reference import AT_ONCE, to_pixels
from fdistill.evaluation.metrics import frechet_distance
from fdistill.evaluation.sample_files import SamplesSource

pytestmark = pytest.mark.system  # seconds, too many for make check

CPU = torch.device("cpu")
SHAPE = (3, 9, 9)


def inception_of(folder):
    return inception(str(folder / "inception.pth"), CPU)


def images_as_reference(pixels):
    return Reference("real images", lambda: iter(pixels.split(AT_ONCE)), len(pixels))


def measured(source, reference, networks, n=1000, seed=0):
    return FidSuite(networks, reference, n, seed, SHAPE).measure({"student": source})


def statistics_of(pixels, network):
    features = network.features(pixels).double().numpy()
    return {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)}


def test_fid_is_the_frechet_distance_of_unscaled_features(standard):
    generated, real, network = pictures(60), pictures(333, 1, high=180), inception_of(standard)
    found = measured(FixedImages(generated), images_as_reference(real), [network])
    wanted = frechet_distance(network.features(generated), network.features(real))
    assert found.rows["student"]["fid"] == pytest.approx(float(wanted), rel=1e-9)
    assert wanted > 1  # of unscaled features
    assert (found.setup["samples"], found.setup["networks"]["inception"]["reference_count"]) == ({"student": 60}, 333)


def test_samples_are_judged_as_the_png_files_that_they_become(standard, tmp_path):
    pixels, network = pictures(24), inception_of(standard)
    for i, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i:02}.png")
    noisy = FixedImages(pixels)
    noisy.read = lambda numbers: (pixels[numbers].float() + 0.8 * torch.rand(1) - 0.4) / 127.5 - 1
    reference = images_as_reference(pictures(40, 1))
    rows = [measured(s, reference, [network]).rows for s in (FixedImages(pixels), noisy)]
    assert rows[0] == rows[1]
    suite = FidSuite([network], open_reference(str(tmp_path), SHAPE), 100, 0, SHAPE)
    assert suite.measure({"student": FixedImages(pixels)}).rows["student"]["fid"] == pytest.approx(0, abs=1e-9)


def test_a_file_of_samples_is_judged_as_its_images_are(standard, tmp_path):
    pixels, network = pictures(24), inception_of(standard)
    np.savez(tmp_path / "samples.npz", pixels.permute(0, 2, 3, 1).numpy())
    sources = FixedImages(pixels), SamplesSource(tmp_path / "samples.npz")
    rows = [measured(source, images_as_reference(pictures(40, 1)), [network]).rows for source in sources]
    assert rows[0] == rows[1]


def test_pixels_are_rounded_and_clamped():
    x = torch.tensor([-1.2, -1.0, 0.5 / 127.5 + 1e-4 - 1, 1.0, 3.0])
    assert to_pixels(x).tolist() == [0, 0, 1, 255, 255]
    with pytest.raises(ValueError, match="finite"):
        to_pixels(torch.tensor([float("nan")]))


def test_a_generator_is_asked_for_a_few_samples_at_a_time_of_classes_in_turn(standard):
    source, n = Generator(), 2 * AT_ONCE + 7
    network = inception_of(standard)
    first = measured(source, images_as_reference(pictures(50)), [network], n)
    assert [len(labels) for labels in source.asked] == [AT_ONCE, AT_ONCE, 7]
    assert torch.equal(torch.cat(source.asked), torch.arange(n) % 2)
    assert measured(Generator(), images_as_reference(pictures(50)), [network], n).rows == first.rows
    assert measured(Generator(), images_as_reference(pictures(50)), [network], n, seed=1).rows != first.rows


def test_batches_of_a_generator_differ(standard):
    source = Generator()
    drawn = []
    source.draw = lambda n, seed, labels: drawn.append(Generator().draw(n, seed, labels)) or drawn[-1]
    measured(source, images_as_reference(pictures(50)), [inception_of(standard)], 2 * AT_ONCE)
    assert not torch.equal(drawn[0], drawn[1])


def test_a_fixed_set_gives_n_or_all_and_says_so(standard):
    network, source = inception_of(standard), FixedImages(pictures(40))
    for n, used in ((25, 25), (400, 40)):
        setup = measured(source, images_as_reference(pictures(50)), [network], n).setup
        assert setup["samples"] == {"student": used}
        assert any(f"{used} of its 40" in note for note in setup["notes"])


def test_statistics_of_others_stand_for_images(standard, tmp_path):
    network, real, source = inception_of(standard), pictures(90, 1), FixedImages(pictures(60))
    wanted = measured(source, images_as_reference(real), [network])
    edm, adm, images = tmp_path / "edm.npz", tmp_path / "adm.npz", tmp_path / "images.npz"
    rows = real.permute(0, 2, 3, 1).numpy()
    np.savez(edm, **statistics_of(real, network))
    np.savez(adm, **statistics_of(real, network), mu_s=np.zeros(3), sigma_s=np.eye(3), arr_0=rows[:50])
    np.savez_compressed(images, arr_0=rows)
    found = {path.stem: measured(source, open_reference(str(path), SHAPE), [network]) for path in (edm, adm, images)}
    for one in found.values():
        assert one.rows["student"]["fid"] == pytest.approx(wanted.rows["student"]["fid"], rel=1e-9)
    assert found["images"].rows == wanted.rows
    assert "kid" not in found["edm"].rows["student"]
    assert any("no KID" in note for note in found["edm"].setup["notes"])
    assert found["edm"].setup["networks"]["inception"]["reference_count"] is None
    assert "kid" in found["adm"].rows["student"]
    assert any("mu_s" in note for note in found["adm"].setup["notes"])


def report_in(folder, found):
    folder.mkdir()
    for name, statistics in found.statistics.items():
        statistics.write(folder / name)
    (folder / "report.json").write_text(json.dumps({"fid_setup": found.setup}))
    return str(folder)


def test_another_report_is_a_reference_of_the_same_weights_only(standard, tmp_path):
    network, source = inception_of(standard), FixedImages(pictures(60))
    first = measured(source, images_as_reference(pictures(90, 1)), [network])
    report = report_in(tmp_path / "first", first)
    for path in (report, report + "/report.json"):
        again = measured(source, open_reference(path, SHAPE), [network])
        assert again.rows["student"]["fid"] == first.rows["student"]["fid"]
        assert again.setup["networks"]["inception"]["reference_count"] == 90
    weights = torch.load(standard / "inception.pth", weights_only=True)
    torch.save({name: 2 * value for name, value in weights.items()}, standard / "inception.pth")
    with pytest.raises(ValueError, match="weights"):
        FidSuite([inception_of(standard)], open_reference(report, SHAPE), 100, 0, SHAPE)
    student = open_reference(f"{report}/fid_inception_student.npz", SHAPE)
    assert measured(source, student, [network]).rows["student"]["fid"] == pytest.approx(0, abs=1e-9)


def test_too_few_samples_for_the_covariance_are_warned_of(standard):
    network, reference = inception_of(standard), images_as_reference(pictures(50))
    few = measured(FixedImages(pictures(50)), reference, [network])
    assert not any("singular" in note for note in few.setup["notes"])
    network.extractor.network.pooled.body = torch.nn.Conv2d(3, 60, 3)
    network.extractor.network.fc = torch.nn.Linear(60, 5)
    few = measured(FixedImages(pictures(50)), reference, [network])
    assert any("singular" in note and "50" in note for note in few.setup["notes"])


def test_fd_dinov2_reads_images_of_224_pixels(standard):
    network = dinov2(f"vit_small_patch14_dinov2={standard / 'dinov2.pth'}", CPU)
    generated, real = pictures(12), pictures(14, 1)
    row = measured(FixedImages(generated), images_as_reference(real), [network]).rows["student"]
    assert row == {"fd_dinov2": pytest.approx(float(frechet_distance(*map(network.features, (generated, real)))))}
    assert "224 x 224" in network.preprocessing


def test_clip_score_compares_images_with_the_names_of_their_classes(standard):
    network = clip(f"tiny={standard / 'clip.pth'}", ["cat", "fire_truck"], CPU)
    letters = [len("a photo of a cat"), len("a photo of a fire truck")]
    prompts = torch.tensor([[float(n), 1] for n in letters])
    generated = pictures(20)
    row = measured(FixedImages(generated), Reference("none"), [network]).rows["student"]
    cosines = F.cosine_similarity(network.features(generated).double(), prompts[torch.arange(20) % 2].double())
    assert row == {"clip_score": pytest.approx(100 * float(cosines.mean()))}


def written(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


GOOD = {"mu": np.zeros(FEATURES), "sigma": np.eye(FEATURES)}


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"mean": np.zeros(3)}, "sigma"),
        ({"mu_s": np.zeros(3), "sigma_s": np.eye(3)}, "mu_s"),
        ({"mu": np.zeros(FEATURES), "sigma": np.eye(FEATURES + 1)}, "covariance"),
        ({"mu": np.zeros(FEATURES + 1), "sigma": np.eye(FEATURES + 1)}, "feature"),
        (GOOD | {"sigma": -np.eye(FEATURES)}, "definite"),
        (GOOD | {"sigma": np.triu(np.ones((FEATURES, FEATURES)))}, "symmetric"),
        (GOOD | {"mu": np.full(FEATURES, np.nan)}, "finite"),
        (GOOD | {"mu": np.array([None] * FEATURES)}, "npz"),
        ({"arr_0": np.zeros((20, 8, 8, 3), np.uint8)}, "samples"),
        ({"arr_0": np.zeros((20, 9, 9, 3), np.float32)}, "8-bit"),
        ({"arr_0": np.zeros((1, 9, 9, 3), np.uint8)}, "3 images"),
    ],
)
def test_statistics_that_do_not_fit_give_one_line(arrays, match, standard, tmp_path):
    with pytest.raises(ValueError, match=match) as caught:
        FidSuite([inception_of(standard)], open_reference(written(tmp_path / "r.npz", **arrays), SHAPE), 100, 0, SHAPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.npz", "empty.npz", "report.json", "broken/report.json", "empty"])
def test_references_that_are_none_give_one_line(name, standard, tmp_path):
    (tmp_path / "empty.npz").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text('{"student": {}}')
    with pytest.raises(ValueError, match=name.split("/")[0]) as caught:
        open_reference(str(tmp_path / name), SHAPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda folder: inception("nowhere.pth", CPU), "--fid"),
        (lambda folder: inception("hub:mobilenet", CPU), "inception"),
        (lambda folder: dinov2("vit_large_patch14_dinov2.lvd142m", CPU), "--dinov2"),
        (lambda folder: clip(str(folder / "clip.pth"), ["a"], CPU), "MODEL"),
        (lambda folder: clip("tiny=nowhere", ["a"], CPU), "--clip"),
        (lambda folder: clip(f"tiny={folder / 'clip.pth'}", [], CPU), "prompts"),
        (lambda folder: FidSuite([inception_of(folder)], images_as_reference(pictures(9)), 9, 0, SHAPE), "fid_samples"),
        (lambda folder: FidSuite([inception_of(folder)], images_as_reference(pictures(9)), 99, 0, (2,)), "images"),
        (lambda folder: measured(FixedImages(pictures(9)), images_as_reference(pictures(9)), []), "enough"),
    ],
)
def test_mistakes_give_one_line(make, match, standard):
    with pytest.raises(ValueError, match=match) as caught:
        make(standard)
    assert "\n" not in str(caught.value)


def test_a_clip_score_of_samples_without_classes_is_refused(standard):
    network, source = clip(f"tiny={standard / 'clip.pth'}", ["a"], CPU), FixedImages(pictures(20))
    source.num_classes = 0
    with pytest.raises(ValueError, match="prompts"):
        measured(source, Reference("none"), [network])


def test_a_missing_library_is_named(standard, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ValueError, match="fidelity"):
        inception_of(standard)
