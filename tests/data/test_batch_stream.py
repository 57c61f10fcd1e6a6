"""The training stream is a concatenation of permutations that ranks share out and that a resumed run continues."""

from itertools import islice
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from fdistill.data import Digits, EndlessBatchSampler, GenerativeDataModule, InMemorySplit


class Numbers(GenerativeDataModule):
    """Sample i is the number i; 10 of them, so that an epoch ends in the middle of a batch of 4."""

    sample_shape = (1,)
    num_classes = 0

    def __init__(self, batch_size=4, seed=0, num_workers=0):
        super().__init__(batch_size, seed, num_workers)

    def load_splits(self):
        return tuple(InMemorySplit(torch.arange(float(n))[:, None], torch.zeros(n)) for n in (10, 7))


COUNTS = {"training samples": 10, "held-out samples": 7}


class Recorder(L.LightningModule):
    """Writes down the samples of every training step, and fails in one step if told to."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.fail_at = [], fail_at

    def training_step(self, batch, batch_idx):
        if self.fail_at == self.global_step:
            raise RuntimeError("power cut")
        self.seen.append(batch.x.flatten().tolist())
        return (self.weight * batch.x).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(L.Callback):
    """Saves a checkpoint at the end of one batch."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(data, max_steps, ckpt_path=None, module=None, **options):
    module = module or Recorder()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"enable_checkpointing": False, "limit_val_batches": 0, "max_epochs": -1} | quiet | options
    trainer = L.Trainer(accelerator="cpu", devices=1, use_distributed_sampler=False, max_steps=max_steps, **options)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module.seen


def expected(number_of_batches, batch_size=4, first=0):
    sampler = EndlessBatchSampler(10, batch_size, seed=0, first_batch=lambda: first)
    return [[float(i) for i in batch] for batch in islice(sampler, number_of_batches)]


def test_the_stream_is_a_concatenation_of_distinct_permutations():
    stream = torch.tensor([i for batch in islice(EndlessBatchSampler(10, 4, seed=0), 50) for i in batch]).view(20, 10)
    assert torch.equal(stream.sort(dim=1).values, torch.arange(10).expand(20, 10))
    assert len({tuple(epoch) for epoch in stream.tolist()}) == 20


@pytest.mark.parametrize("num_samples", [1, 3, 10, 64])
def test_two_ranks_share_what_one_rank_with_twice_the_batch_sees(num_samples):
    whole = EndlessBatchSampler(num_samples, 8, seed=5)
    ranks = [EndlessBatchSampler(num_samples, 4, seed=5, rank=r, world_size=2) for r in range(2)]
    for number in range(20):
        parts = [rank.batch(number) for rank in ranks]
        assert all(len(part) == 4 for part in parts)
        assert torch.equal(torch.cat(parts).sort().values, whole.batch(number).sort().values)


def test_ranks_are_disjoint_within_an_epoch():
    ranks = [EndlessBatchSampler(24, 2, seed=0, rank=r, world_size=3) for r in range(3)]
    seen = torch.cat([rank.batch(number) for rank in ranks for number in range(4)])
    assert torch.equal(seen.sort().values, torch.arange(24))


def test_a_batch_depends_on_its_number_alone():
    sampler, fresh = EndlessBatchSampler(10, 4, seed=0), EndlessBatchSampler(10, 4, seed=0)
    forward = [sampler.batch(number) for number in range(30)]
    assert all(torch.equal(fresh.batch(number), forward[number]) for number in reversed(range(30)))


def test_the_loader_has_no_length_and_any_number_of_workers_gives_the_same_batches():
    loaders = [Numbers(num_workers=n).train_dataloader() for n in (0, 2)]
    with pytest.raises(TypeError):
        len(loaders[0])
    alone, workers = ([batch.x.flatten().tolist() for batch in islice(loader, 6)] for loader in loaders)
    assert alone == workers == expected(6)


def test_an_uninterrupted_run_sees_batch_after_batch():
    assert fit(Numbers(), 12) == expected(12)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("limit", [1.0, 5], ids=["one endless epoch", "epochs of 5 batches"])
@pytest.mark.parametrize("stop", [4, 5, 7])
def test_a_resumed_run_continues_where_the_checkpoint_was_saved(tmp_path, stop, limit):
    path = tmp_path / "stopped.ckpt"
    options = {"limit_train_batches": limit}
    before = fit(Numbers(), stop, callbacks=[SaveAt(stop, path)], **options)
    assert torch.load(path, weights_only=True)["Numbers"] == {"batches_seen": stop, **COUNTS}
    after = fit(Numbers(), 13, ckpt_path=path, **options)
    assert before + after == fit(Numbers(), 13, **options) == expected(13)


def test_a_run_resumed_twice_still_continues(tmp_path):
    first = fit(Numbers(), 3, callbacks=[SaveAt(3, tmp_path / "a.ckpt")])
    second = fit(Numbers(), 8, ckpt_path=tmp_path / "a.ckpt", callbacks=[SaveAt(8, tmp_path / "b.ckpt")])
    third = fit(Numbers(), 12, ckpt_path=tmp_path / "b.ckpt")
    assert first + second + third == expected(12)


def test_a_batch_that_failed_is_seen_again(tmp_path):
    saver = ModelCheckpoint(tmp_path, save_on_exception=True, every_n_train_steps=100)
    module = Recorder(fail_at=6)
    with pytest.raises(RuntimeError, match="power"):
        fit(Numbers(), 12, module=module, callbacks=[saver], enable_checkpointing=True)
    (path,) = tmp_path.glob("*.ckpt")
    assert module.seen + fit(Numbers(), 12, ckpt_path=path) == expected(12)


def test_validation_between_steps_does_not_move_the_stream():
    options = {"limit_val_batches": 1.0, "val_check_interval": 3, "check_val_every_n_epoch": None}
    assert fit(Numbers(), 8, **options) == expected(8)


def test_a_second_trainer_begins_at_its_own_start():
    data = Numbers()
    assert fit(data, 5) == fit(data, 5) == expected(5)


def test_resuming_with_another_batch_size_continues_at_the_same_batch_number(tmp_path):
    fit(Numbers(), 3, callbacks=[SaveAt(3, tmp_path / "a.ckpt")])
    assert fit(Numbers(batch_size=5), 6, ckpt_path=tmp_path / "a.ckpt") == expected(3, batch_size=5, first=3)


def test_without_a_trainer_a_loaded_position_is_where_the_stream_begins():
    data = Numbers()
    data.load_state_dict({"batches_seen": 9})
    assert data.state_dict() == {"batches_seen": 9, **COUNTS}
    assert [b.x.flatten().tolist() for b in islice(data.train_dataloader(), 3)] == expected(3, first=9)


@pytest.mark.parametrize(("name", "found"), [("training samples", 9), ("held-out samples", 8)])
def test_a_run_does_not_continue_with_more_or_fewer_samples(name, found):
    state = Numbers().state_dict() | {name: found}
    with pytest.raises(ValueError, match=f"{name} {found}"):
        Numbers().load_state_dict(state)


def test_a_loaded_position_holds_for_one_trainer_and_not_for_the_next():
    data = Numbers()
    data.load_state_dict({"batches_seen": 2})
    assert fit(data, 3) == expected(3, first=2)
    assert fit(data, 3) == expected(3)


def test_iterating_leaves_the_global_random_state_alone():
    data, before = Numbers(), torch.random.get_rng_state()
    next(iter(data.train_dataloader()))
    next(iter(data.val_dataloader()))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("state", [{}, {"batches_seen": -1}, {"batches_seen": "7"}])
def test_a_state_without_a_position_is_refused(state):
    with pytest.raises(ValueError, match="batches_seen"):
        Numbers().load_state_dict(state)


@pytest.mark.parametrize("name", ["val_dataloader", "test_dataloader", "predict_dataloader"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 9])  # nine ranks share seven samples
def test_ranks_share_the_held_out_split_in_order_without_loss_or_duplicate(name, world_size):
    data, parts = Numbers(batch_size=2), []
    for rank in range(world_size):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        loader = getattr(data, name)()
        batches = [batch.x.flatten() for batch in loader]
        assert len(loader) == len(batches)
        parts.append(torch.cat(batches) if batches else torch.zeros(0))
        assert torch.equal(parts[-1], parts[-1].sort().values)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(7.0))


def test_predict_runs_over_the_held_out_split_once():
    class Predictor(Recorder):
        def predict_step(self, batch, batch_idx):
            return batch.x

    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    outputs = torch.cat(trainer.predict(Predictor(), Digits(batch_size=200)))
    assert torch.equal(outputs, Digits().held_out_samples.copied().x)


def test_a_trainer_that_would_divide_the_data_again_is_refused():
    data = Numbers()
    connector = SimpleNamespace(use_distributed_sampler=True)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2, _accelerator_connector=connector)
    with pytest.raises(ValueError, match="use_distributed_sampler"):
        data.val_dataloader()
