"""The bytes of an answer: pictures come back from their files bit by bit, whatever their shape."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fdistill.sampling.pictures import to_pixels
from fdistill.serving.images import as_json, encoded


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (8, 8), (33, 20)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels(shape, channels):
    drawn = 2 * torch.rand(3, channels, *shape, generator=torch.Generator().manual_seed(0)) - 1
    flat = torch.ones(1, channels, *shape)  # long runs
    images = torch.cat([drawn, flat, -flat])
    for file, each in zip(encoded(images, "png"), to_pixels(images), strict=True):
        image = Image.open(io.BytesIO(file))
        image.verify()  # the sums of all chunks
        assert (Image.open(io.BytesIO(file)).mode, image.format) == ("RGB" if channels == 3 else "L", "PNG")
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(file))).reshape(each.shape), each)


def test_the_body_is_json_whatever_the_name_of_the_model():
    images, name = torch.zeros(2, 1, 4, 4), 'a "quoted" näme\n'
    answer = json.loads(as_json(images, "png", name, 7))
    assert (answer["model"], answer["seed"], answer["size"], answer["output_format"]) == (name, 7, "4x4", "png")
    assert [base64.b64decode(each["b64_json"]) for each in answer["data"]] == encoded(images, "png")
