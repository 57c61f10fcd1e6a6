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


@pytest.mark.parametrize("name", ["sd15", "flux1_dev"])
def test_those_that_are_tuned_have_the_same_network(name):
    """But for the size of FLUX's pictures."""
    files = [
        yaml.safe_load((ROOT / "configs" / "teachers" / f"{file}.yaml").read_text()) for file in (name, f"{name}_tuned")
    ]
    plain, tuned = (config["model"]["init_args"]["teacher"] for config in files)
    shapes = [config["init_args"]["network"]["init_args"].pop("sample_shape") for config in (plain, tuned)]
    assert plain == tuned
    assert shapes[0][0] == shapes[1][0]
    assert files[1]["data"]["init_args"]["sample_shape"] == shapes[1]
