"""Latents on disk are what the VAE makes; a draw is a function of seed, epoch and image, wherever a run is resumed."""

import json
import pickle
from itertools import islice

import lightning.pytorch as L
import pytest
import torch
from latent_folders import VAES, latents
from safetensors.torch import load_file, save_file
from stock_models import save, vae

from fdistill.cli.main import one_line
from fdistill.core.weight_files import CheckpointError
from fdistill.data import DecodedLatents, ImageFolder, LatentFolder
from fdistill.models.vae import Decoder
from fdistill.training.argument_checks import check_latents

pytestmark = pytest.mark.system  # seconds, too many for make check


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """Latents of 20 images in 2 classes, with mirror images."""
    return latents(tmp_path_factory.mktemp("encoded"), classes=2, flips=True)


def images_of(folder, **changes):
    return ImageFolder(str(folder.parent / "images"), resolution=8, **changes)


def stream(data, n, first=0):
    data.load_state_dict({"batches_seen": first})
    return [batch.x for batch in islice(data.train_dataloader(), n)]


@pytest.mark.parametrize("kind", VAES)
@torch.no_grad()
def test_latents_are_the_vae_s_own_with_the_scale_of_its_decoder(kind, tmp_path):
    folder = latents(tmp_path, kind)
    data, images, decoder = LatentFolder(str(folder), sample=False), images_of(folder), Decoder(folder / "vae")
    coded = decoder.vae.encode(images.train_samples.copied().x)
    own = coded.latent_dist.mean if hasattr(coded, "latent_dist") else coded.latents
    factor, shift = decoder.scale
    torch.testing.assert_close(data.train_samples.copied().x / factor + shift, own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        decoder(data.train_samples.copied().x), decoder.vae.decode(own).sample.clamp(-1, 1), rtol=0, atol=1e-4
    )


def test_draws_have_the_posterior_s_mean_and_standard_deviation(encoded):
    file = load_file(encoded / "latents-00000.safetensors")
    data = LatentFolder(str(encoded), batch_size=36)
    epochs = torch.stack(stream(data, 100))  # a batch is an epoch
    means = LatentFolder(str(encoded), batch_size=36, sample=False)
    order = torch.stack(stream(means, 100))
    z = (epochs - order).flatten()
    assert abs(float(z.mean())) < 2e-3
    assert float(z.square().mean()) == pytest.approx(float(file["std"].square().mean()), rel=0.05)
    assert all(not torch.equal(epochs[0], other) for other in epochs[1:5])


def test_an_epoch_is_every_training_image_and_its_mirror_image_once(encoded):
    (epoch,) = stream(LatentFolder(str(encoded), batch_size=36, sample=False), 1)
    file, held_out = (
        load_file(encoded / "latents-00000.safetensors"),
        LatentFolder(str(encoded)).held_out_samples.copied(),
    )
    both = torch.cat([file["mean"], file["flipped_mean"]])
    nearest = torch.cdist(epoch.flatten(1).double(), both.flatten(1).double())
    assert (nearest.min(1).values < 1e-4).all()
    assert len(set(nearest.argmin(1).tolist())) == len(epoch) == 2 * (20 - len(held_out.x))


def test_the_stream_and_the_split_are_those_of_the_images(encoded):
    images = images_of(encoded, horizontal_flip=True, held_out_fraction=0.3, batch_size=5, seed=3)
    data = LatentFolder(str(encoded), held_out_fraction=0.3, batch_size=5, seed=3, sample=False)
    encode = Decoder(encoded / "vae").encode
    for batch, pixels in zip(stream(data, 6), stream(images, 6), strict=True):
        torch.testing.assert_close(batch, encode(pixels)[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        data.held_out_samples.copied().x, encode(images.held_out_samples.copied().x)[0], rtol=1e-4, atol=1e-4
    )
    assert torch.equal(data.held_out_samples.labels, images.held_out_samples.labels)
    assert (data.num_classes, data.class_names) == (2, ["a", "b"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_draws_continue_where_they_were_left(encoded, num_workers):
    whole = stream(LatentFolder(str(encoded), batch_size=7), 12)  # more than two epochs
    after = stream(LatentFolder(str(encoded), batch_size=7, num_workers=num_workers), 5, first=7)
    assert all(torch.equal(a, b) for a, b in zip(whole[7:], after, strict=True))
    assert not torch.equal(stream(LatentFolder(str(encoded), batch_size=7, seed=1), 1)[0], whole[0])


def test_two_ranks_draw_what_one_draws(encoded):
    one = stream(LatentFolder(str(encoded), batch_size=8), 3)
    parts = []
    for rank in range(2):
        data = LatentFolder(str(encoded), batch_size=4)
        data._rank_and_world_size = lambda rank=rank: (rank, 2)
        parts.append(stream(data, 3))
    for step, batch in enumerate(one):
        assert torch.equal(batch[0::2], parts[0][step])
        assert torch.equal(batch[1::2], parts[1][step])


def test_a_trainer_resumes_the_draws(encoded, tmp_path):
    class Seen(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), []

        def training_step(self, batch, batch_idx):
            self.seen.append(batch.x)
            return self.weight * 0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    def run(turns, save_to=None, resume_from=None):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "max_epochs": -1}
        trainer = L.Trainer(accelerator="cpu", max_steps=turns, enable_model_summary=False, **quiet)
        module = Seen()
        data = LatentFolder(str(encoded), batch_size=16)
        trainer.fit(module, datamodule=data, ckpt_path=resume_from)
        if save_to is not None:
            trainer.save_checkpoint(save_to)
        return module.seen

    before, whole = run(3, tmp_path / "a.ckpt"), run(8)
    after = run(8, resume_from=tmp_path / "a.ckpt")
    assert all(torch.equal(a, b) for a, b in zip([*before, *after], whole, strict=True))


def test_metrics_see_images_of_an_even_part(encoded):
    data = LatentFolder(str(encoded), metric_samples=7)
    pixels = data.in_pixels()
    assert (type(pixels), pixels.sample_shape, pixels.decoder) == (DecodedLatents, (3, 8, 8), None)
    assert pixels.in_pixels() is pixels is data.in_pixels()
    assert len(data.train_samples) == len(pixels.train_samples) == 7
    decoded = data.decoder(data.train_samples.copied().x)
    torch.testing.assert_close(pixels.train_samples.copied().x, decoded, rtol=0, atol=1 / 255 + 1e-6)
    assert torch.equal(pixels.train_samples.labels, data.train_samples.labels)
    assert pixels.num_classes == 2


def test_sixteen_bits_are_half_the_file(tmp_path, encoded):
    half = latents(tmp_path, images=encoded.parent / "images", flips=True, half=True)
    sizes = [(folder / "latents-00000.safetensors").stat().st_size for folder in (half, encoded)]
    assert sizes[0] < 0.55 * sizes[1]
    pair = [LatentFolder(str(folder), sample=False).train_samples.copied().x for folder in (half, encoded)]
    torch.testing.assert_close(*pair, rtol=2**-10, atol=1e-4)


def test_a_split_goes_to_a_worker_without_its_open_files(encoded):
    split = LatentFolder(str(encoded)).load_splits()[0]
    first = split[0].x
    assert torch.equal(pickle.loads(pickle.dumps(split))[0].x, first)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "latents.json").unlink(), "description"),
        (lambda folder: (folder / "latents.json").write_text("{}"), "format"),
        (lambda folder: (folder / "latents-00000.safetensors").unlink(), "missing"),
        (lambda folder: cut(folder / "latents-00000.safetensors"), "changed"),
        (lambda folder: change(folder, labels=lambda x: x + 1), "labels"),
        (lambda folder: change(folder, std=lambda x: x[:, :2]), "latents"),
        (lambda folder: describe(folder, sample_shape=[4, 4]), "latents"),
        (lambda folder: describe(folder, files=[{"name": "../x", "images": 1, "bytes": 1}]), "latents"),
        (lambda folder: describe(folder, files=2 * files_of(folder)), "file"),
        (lambda folder: change(folder, mean=lambda x: x.long()), "latents"),
    ],
)
def test_broken_latents_are_refused_in_one_line(spoil, words, encoded, tmp_path):
    folder = copied(encoded, tmp_path)
    spoil(folder)
    with pytest.raises(CheckpointError, match=words) as error:
        LatentFolder(str(folder)).setup()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_breaks_while_it_is_read_is_told_in_one_line(num_workers, encoded, tmp_path):
    folder = copied(encoded, tmp_path)
    change(folder, std=lambda x: x / 0)
    data = LatentFolder(str(folder), batch_size=36, num_workers=num_workers)
    with pytest.raises(CheckpointError) as error:
        stream(data, 1)
    assert one_line(error.value) == f"{folder} holds latents that are not finite: encode them again"
    (folder / "latents-00000.safetensors").unlink()
    data = LatentFolder(str(encoded), num_workers=num_workers)
    data.setup()
    data.load_splits()[0].files.folder = folder
    with pytest.raises(CheckpointError) as error:
        stream(data, 1)
    assert "latents-00000.safetensors is missing, damaged or no file of latents" in one_line(error.value)
    assert "Traceback" not in one_line(error.value)


def copied(encoded, target):
    folder = target / "copy"
    folder.mkdir()
    for file in encoded.glob("latents*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def files_of(folder):
    return json.loads((folder / "latents.json").read_text())["files"]


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def change(folder, **changes):
    file = folder / "latents-00000.safetensors"
    request = json.loads((folder / "latents.json").read_text())["request"]
    tensors = load_file(file)
    save_file(tensors | {n: f(tensors[n]).contiguous() for n, f in changes.items()}, file, {"request": request})
    text = json.loads((folder / "latents.json").read_text())
    describe(folder, files=[text["files"][0] | {"bytes": file.stat().st_size}])


def describe(folder, **changes):
    file = folder / "latents.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_latents_of_another_scale_than_the_teacher_s_are_refused(encoded, tmp_path):
    data = LatentFolder(str(encoded))
    check_latents(Decoder(encoded.parent / "own_vae"), data)
    check_latents(None, data)
    check_latents(Decoder(encoded / "vae"), images_of(encoded))
    with pytest.raises(ValueError, match="encode"):
        check_latents(Decoder(encoded.parent / "own_vae", {"scaling_factor": 0.5}), data)
    by_channel = save(vae(latents_std=[0.5, 1.0, 2.0, 3.0], latents_mean=[0.3] * 4), tmp_path / "vae")
    with pytest.raises(ValueError, match="factor"):
        check_latents(Decoder(by_channel), data)
    with pytest.raises(ValueError, match="shift"):
        check_latents(Decoder(encoded.parent / "own_vae", {"shift_factor": 0.0}), data)


@pytest.mark.parametrize("bad", [{"held_out_fraction": 1.0}, {"metric_samples": 0}, {"split_seed": -1}])
def test_arguments_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LatentFolder("anywhere", **bad)
