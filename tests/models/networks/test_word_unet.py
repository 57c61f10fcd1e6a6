"""A text model and a UNet that learn together: tokens in, gradients in both, the empty text as "no condition"."""

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.condition import Condition
from fdistill.models.networks import Network, WordUNet
from fdistill.models.networks.text.words import token_ids

WORDS = ["a", "red", "blue", "seven", "two"]


def network(words=WORDS, **changes):
    torch.manual_seed(0)
    return WordUNet(words, 5, **{"widths": (8, 16), "text_width": 16, "heads": 2, "groups": 4, **changes}).eval()


def tokens(of, *texts):
    return Condition({"input_ids": torch.tensor(token_ids(texts, of.tokenizer))})


def test_text_model_and_unet_learn_from_one_loss():
    made = network()
    x = torch.randn(2, 3, 8, 8)
    made(x, torch.tensor([1.0, 500.0]), tokens(made, "a red seven", "a blue two")).square().mean().backward()
    for part in (made.text, made.unet):
        assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in part.parameters())


def test_it_is_its_unet_at_the_embeddings_of_its_text_model():
    made, x, noise = network(), torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    text = tokens(made, "a red seven", "a blue two")
    assert torch.equal(made(x, noise, text), made.unet(x, noise, made.embeddings(text)))
    assert not torch.equal(made(x, noise, text), made(x, noise, text.rows(torch.tensor([1, 0]))))


def test_no_condition_is_the_empty_text():
    made = network()
    assert torch.equal(made.null(3)["input_ids"], tokens(made, "", "", "")["input_ids"])


def test_words_may_come_in_any_order_and_a_description_rebuilds_it():
    made = network()
    again = Network.from_spec(made.spec())
    again.load_state_dict(made.state_dict())
    assert torch.equal(
        tokens(made, "a red seven")["input_ids"], tokens(network(WORDS[::-1]), "a red seven")["input_ids"]
    )
    x, noise, text = torch.randn(1, 3, 8, 8), torch.tensor([10.0]), tokens(made, "a red seven")
    assert_close(again.eval()(x, noise, text), made(x, noise, text))


def test_features_are_those_of_its_unet():
    made = network()
    features = made.encode(torch.randn(2, 3, 8, 8), torch.ones(2), made.null(2)).features
    assert tuple(tap.shape[1] for tap in features) == made.feature_channels == (16,)


@pytest.mark.parametrize("changes", [{"words": []}, {"widths": (9, 16)}, {"text_width": 15}])
def test_sizes_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValueError, match="words"):
        network(**changes)
