"""Data without samples: an endless resumable stream of classes, and an error for whoever asks for more."""

import io
from collections import Counter
from itertools import islice

import lightning.pytorch as L
import pytest
import torch
from cli_runs import CONFIGS
from jsonargparse import ArgumentParser

from fdistill.data import Digits, GenerativeDataModule, LatentsOnly

SHAPE = [3, 4, 4]


def labels_of(data, n, first=0):
    data.load_state_dict({"batches_seen": first})
    return [batch.classes.tolist() for batch in islice(data.train_dataloader(), n)]


class Labels(L.LightningModule):
    """Notes the labels that it sees."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.classes.tolist())
        return self.weight * 0

    def predict_step(self, batch, batch_idx):
        return batch.classes

    def validation_step(self, batch, batch_idx):
        raise AssertionError

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return L.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet, **options)


@pytest.mark.parametrize("num_classes", [0, 1, 7, 10_000])
def test_every_pass_asks_for_every_class_equally_often(num_classes):
    data = LatentsOnly(SHAPE, num_classes, batch_size=64)
    size, classes = len(data.load_splits()[0]), max(num_classes, 1)
    stream = torch.cat([batch.classes for batch in islice(data.train_dataloader(), -(-2 * size // 64))])
    for one_pass in (stream[:size], stream[size : 2 * size]):
        assert (one_pass.bincount(minlength=classes) == size // classes).all()
        assert len(one_pass.bincount()) == classes
    assert classes == 1 or not torch.equal(stream[:size], stream[size : 2 * size])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_has_the_announced_form_and_samples_that_no_loss_survives(workers):
    batch = next(iter(LatentsOnly(SHAPE, 5, batch_size=6, num_workers=workers).train_dataloader()))
    assert (batch.x.shape, batch.x.dtype) == ((6, *SHAPE), torch.float32)
    assert (batch.classes.shape, batch.classes.dtype) == ((6,), torch.int64)
    assert batch.x.isnan().all()


def test_samples_that_are_not_there_take_no_memory():
    split, _ = LatentsOnly([3, 1024, 1024]).load_splits()
    assert split.x.untyped_storage().nbytes() == 4


def test_the_stream_is_a_function_of_the_seed():
    one, same, other = (LatentsOnly(SHAPE, 10, seed=seed) for seed in (3, 3, 4))
    assert labels_of(one, 4) == labels_of(same, 4) != labels_of(other, 4)


def test_a_stream_continues_where_it_was_left():
    whole = labels_of(LatentsOnly(SHAPE, 10), 70)  # 32 batches are a pass
    assert labels_of(LatentsOnly(SHAPE, 10), 10, first=60) == whole[60:]


def test_a_trainer_sees_the_stream_and_does_not_validate_when_it_is_told_not_to():
    module, data = Labels(), LatentsOnly(SHAPE, 10, batch_size=4)
    trainer(max_steps=5, limit_val_batches=0).fit(module, data)
    assert module.seen == labels_of(LatentsOnly(SHAPE, 10, batch_size=4), 5)


def test_predict_runs_over_the_classes_in_turn():
    data = LatentsOnly(SHAPE, 10, batch_size=1000)
    labels = torch.cat(trainer().predict(Labels(), data))
    assert torch.equal(labels, torch.arange(len(labels)) % 10)
    assert set(Counter(labels.tolist()).values()) == {len(labels) // 10}


def test_ranks_share_the_classes_of_a_pass_between_them():
    parts = []
    for rank in range(2):
        data = LatentsOnly(SHAPE, 10, batch_size=2050)
        data._rank_and_world_size = lambda rank=rank: (rank, 2)
        parts.append(next(iter(data.train_dataloader())).classes)
    assert (torch.cat(parts).bincount() == 410).all()


@pytest.mark.parametrize("asks", ["train_samples", "held_out_samples", "data_std", "val_dataloader", "test_dataloader"])
def test_whoever_asks_for_real_samples_is_told(asks):
    with pytest.raises(ValueError, match="LatentsOnly") as error:
        getattr(LatentsOnly(SHAPE), asks)()
    assert "\n" not in str(error.value)


def test_validation_is_refused_with_its_remedy():
    with pytest.raises(ValueError, match="limit_val_batches: 0"):
        trainer(max_steps=1, num_sanity_val_steps=0, val_check_interval=1).fit(Labels(), LatentsOnly(SHAPE))


def test_only_data_with_samples_says_so():
    assert (Digits.has_real, Digits().has_real, LatentsOnly(SHAPE).has_real) == (True, True, False)


def test_spec_survives_a_weights_only_file_and_rebuilds_the_stream():
    data = LatentsOnly(SHAPE, 10, batch_size=7, seed=3)
    file = io.BytesIO()
    torch.save(data.spec(), file)
    file.seek(0)
    rebuilt = GenerativeDataModule.from_spec(torch.load(file, weights_only=True))
    assert (rebuilt.spec(), rebuilt.sample_shape) == (data.spec(), tuple(SHAPE))
    assert labels_of(rebuilt, 3) == labels_of(data, 3)


def test_the_shipped_configuration_fits_the_quickstart_teacher():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--trainer", type=dict)
    parser.add_subclass_arguments(GenerativeDataModule, "data")
    parser.add_argument("--config", action="config")
    read = parser.instantiate(parser.parse_args([f"--config={CONFIGS / 'data' / 'latents_only.yaml'}"]))
    assert (read.data.sample_shape, read.data.num_classes) == (Digits.sample_shape, Digits.num_classes)
    assert read.trainer == {"limit_val_batches": 0}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"sample_shape": []}, "sample_shape"),
        ({"sample_shape": [1, 0]}, r"got \[1, 0\]"),
        ({"num_classes": -1}, "num_classes"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(bad, words):
    with pytest.raises(ValueError, match=words):
        LatentsOnly(**{"sample_shape": SHAPE, **bad})
