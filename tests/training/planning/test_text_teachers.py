"""The text teachers that are planned without weights have the published numbers of them."""

import pytest
import torch
import yaml
from repository import ROOT

from fdistill.models.networks.text import TextToImageNetwork

PUBLISHED = {"sd15": 859_520_964, "sdxl": 2_567_463_684, "sd35_medium": 2_243_171_520, "flux1_dev": 11_901_408_320}


@pytest.mark.parametrize("name", PUBLISHED)
def test_their_weights_are_as_many_as_the_published_ones(name):
    config = yaml.safe_load((ROOT / "configs" / "teachers" / f"{name}.yaml").read_text())
    given = config["model"]["init_args"]["teacher"]["init_args"]["network"]["init_args"]
    with torch.device("meta"):
        network = TextToImageNetwork(**given)
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED[name]
    assert list(network.sample_shape) == config["data"]["init_args"]["sample_shape"]
