"""Captioned digits: 300 captions, 30 of them held out, pictures that are what they say, and a judge that reads them."""

import pytest
import torch

from fdistill.data import CaptionedDigits, Digits
from fdistill.data.captioned_digits import caption_numbers, caption_parts, captions, held_out_captions, paint
from fdistill.evaluation.features import CaptionFeatures
from fdistill.evaluation.features import captions as judge

pytestmark = pytest.mark.system  # seconds, too many for make check


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("transformers")
    return CaptionedDigits(batch_size=64)


def test_every_caption_has_one_number():
    parts = caption_parts()
    assert len(set(captions())) == len(parts) == 300
    assert torch.equal(caption_numbers(parts), torch.arange(300))
    assert caption_numbers(torch.tensor([[3, 2, 2]])).tolist() == [-1]
    assert captions()[caption_numbers(torch.tensor([[7, 0, 2]]))] == "a red seven on a blue ground"
    assert len(held_out_captions()) == 30
    assert len(parts[held_out_captions(), :2].unique(dim=0)) == 6


def test_full_ink_has_the_colour_and_no_ink_the_ground():
    number = caption_numbers(torch.tensor([[7, 0, 2]]))
    full, none = paint(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8), number.repeat(2))
    assert full[:, 0, 0].tolist() == pytest.approx([0.8, -0.8, -0.8])
    assert none[:, 3, 5].tolist() == pytest.approx([-0.8, -0.6, 0.8])


def test_held_out_captions_are_in_the_held_out_split_alone(data):
    train, held_out = data.train_samples, data.held_out_samples
    assert set(train.labels.tolist()) == set(range(300)) - set(held_out_captions().tolist())
    assert set(held_out.labels.tolist()) == set(range(300))
    assert len(held_out) == 500 * 30
    digits = Digits().train_samples
    assert len(train) == len(digits) * 30 - 5 * int((digits.labels < 6).sum())


def test_a_batch_has_the_tokens_of_each_caption(data):
    batch = next(iter(data.train_dataloader()))
    ids = data.encoded["input_ids"]
    assert torch.equal(batch.condition["input_ids"], ids[batch.classes])
    assert ids.shape == (300, 9)
    assert len(ids.unique(dim=0)) == 300
    batch.condition.check(data.takes, 64)
    data.null().check(data.takes, 1)
    assert data.named_conditions(2)[1] == [captions()[0], captions()[299]]


def test_a_word_is_a_token(data):
    from fdistill.models.networks.text.words import token_ids, word_tokenizer

    tokenizer = word_tokenizer([word for text in captions() for word in text.split()], 9)
    ids = token_ids(captions(), tokenizer)
    assert ids == data.encoded["input_ids"].tolist()
    assert len({number for one in ids for number in one}) == 10 + 6 + 3 + 2
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == captions()[0]


def test_the_judge_reads_digit_colour_and_ground(data, monkeypatch):
    monkeypatch.setattr(judge, "STEPS", 150)
    extractor = CaptionFeatures()
    train = data.train_samples
    extractor.prepare(train.x[:2000], train.labels[:2000], 300, seed=0)
    seen = data.held_out_samples.rows(range(0, 15_000, 10))
    parts, wanted = extractor.read_parts(seen.x), caption_parts()[seen.classes]
    right = (parts == wanted).float().mean(0)
    assert right[0] > 0.6
    assert right[1:].min() > 0.9
    assert torch.equal(extractor.classify(extractor.extract(seen.x)), caption_numbers(parts))
    again = CaptionFeatures()
    again.fit_again(extractor.learned(), train, train.labels, 300, 0)
    assert torch.equal(again.raw_features(seen.x), extractor.raw_features(seen.x))
    with pytest.raises(ValueError, match="8x8"):
        CaptionFeatures().prepare(torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), 300, 0)
