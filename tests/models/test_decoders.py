"""A decoder makes the images that its VAE makes of unscaled latents, whatever the batch, and survives its folder."""

import json

import pytest
import torch
from stock_models import save, tiny_vae, vae, vq

from fdistill.core.weight_files import CheckpointError
from fdistill.models.vae import Decoder

VAES = {
    "AutoencoderKL": lambda: vae(),
    "scaled and shifted": lambda: vae(scaling_factor=0.4, shift_factor=0.3),
    "by channel": lambda: vae(latents_std=[0.5, 1.0, 2.0, 3.0], latents_mean=[0.1, 0.2, 0.3, -0.4]),
    "VQModel": vq,
    "AutoencoderTiny": tiny_vae,
}
every_vae = pytest.mark.parametrize("build", VAES.values(), ids=VAES)


def latents(model, n=5):
    return torch.randn(n, model.config.latent_channels, 4, 4, generator=torch.Generator().manual_seed(0))


@every_vae
@torch.no_grad()
def test_an_image_is_what_the_vae_makes_of_the_latent_without_its_scale(build, tmp_path):
    model = build()
    z = latents(model)
    config = model.config
    mean, std = (torch.tensor(config.get(name) or [of]) for name, of in (("latents_mean", 0.0), ("latents_std", 1.0)))
    shift = (config.get("shift_factor") or 0) + mean[:, None, None]
    scaled = (z - shift) * config.scaling_factor / std[:, None, None]
    images = Decoder(save(model, tmp_path))(scaled)
    torch.testing.assert_close(images, model.decode(z).sample.clamp(-1, 1), rtol=0, atol=1e-5)


@every_vae
def test_images_do_not_depend_on_the_batch_or_on_being_saved_again(build, tmp_path):
    decoder = Decoder(save(build(), tmp_path / "first"))
    z = latents(decoder.vae)
    decoder.save(tmp_path / "second")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "second").iterdir()}
    assert len(modes) == 1, "whoever reads the configuration reads the weights"
    assert all(path.suffix in (".json", ".safetensors") for path in (tmp_path / "second").iterdir())
    again = Decoder(tmp_path / "second")
    torch.testing.assert_close(again(z, batch_size=2), decoder(z), rtol=0, atol=1e-5)
    torch.testing.assert_close(again(z[3:4]), decoder(z)[3:4], rtol=0, atol=1e-5)


def test_large_images_are_decoded_one_by_one(monkeypatch, tmp_path):
    decoder, sizes = Decoder(save(tiny_vae(), tmp_path)), []
    decode = Decoder._decoded
    monkeypatch.setattr(Decoder, "_decoded", lambda self, raw: sizes.append(len(raw)) or decode(self, raw))
    side = 1024 // decoder.factor
    decoder(torch.zeros(3, 4, side, side // 4))
    decoder(torch.zeros(3, 4, 4, 4))
    assert sizes == [1, 1, 1, 3]


def test_nothing_is_read_before_the_first_latent(tmp_path):
    decoder = Decoder(tmp_path / "gone").to("cpu")
    with pytest.raises(CheckpointError, match="VAE"):
        decoder(torch.zeros(1, 4, 4, 4))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "UNet2DModel"}, "AutoencoderKL"),
        ({"colour": 1}, "colour"),
        ({"latent_channels": 3}, "conv_in"),
    ],
)
def test_a_vae_that_is_not_understood_is_refused_in_one_line(changes, words, tmp_path):
    file = save(vae(), tmp_path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match=words) as error:
        Decoder(tmp_path)(torch.zeros(1, 4, 4, 4))
    assert "\n" not in str(error.value)
