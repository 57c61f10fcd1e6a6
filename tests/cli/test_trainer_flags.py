"""Flags of Lightning's trainer that mean nothing here are refused by the option that does what they ask for."""

import pytest
import torch
from cli_runs import fdistill, succeeds

from fdistill.cli.commands import UsageError
from fdistill.cli.trainer_flags import check_trainer_flags
from fdistill.data import Digits
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet
from fdistill.theory.preconditioning import EDM
from fdistill.training.data_checks import check_fits

REFUSED = {
    "--model.gradient_clip": [{"gradient_clip_val": 1.0}, {"gradient_clip_algorithm": "value"}],
    "--model.accumulate": [{"accumulate_grad_batches": 4}],
    "--trainer.max_steps": [
        {"max_epochs": 5},
        {"limit_train_batches": 10},
        {"fast_dev_run": True},
        {"fast_dev_run": 1},
    ],
    "--trainer.min_steps": [{"min_epochs": 1}],
    "--trainer.precision": [{"precision": name} for name in ("16-mixed", "bf16-true", "16-true", "64-true", "16")],
    "--trainer.strategy": [
        {"strategy": "ddp"},
        {"strategy": "fsdp"},
        {"strategy": "deepspeed_stage_2"},
        {"strategy": "auto", "devices": 2},
        {"strategy": "auto", "devices": "0,1"},
        {"strategy": "auto", "devices": [0, 1]},
        {"num_nodes": 2},
    ],
    "--trainer.callbacks": [{"barebones": True}],
    "--data": [{"overfit_batches": 10}],
    "batch normalisation": [{"sync_batchnorm": True}],
    "epochs": [{"reload_dataloaders_every_n_epochs": 1}],
    "number of turns": [{"val_check_interval": 0.5}],
}
CASES = [(words, given) for words, all_given in REFUSED.items() for given in all_given]


@pytest.mark.parametrize(("words", "given"), CASES, ids=[str(given) for _, given in CASES])
def test_flag_with_a_twin_is_refused_by_the_name_of_the_twin(words, given):
    with pytest.raises(UsageError, match=words):
        check_trainer_flags(given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"gradient_clip_val": None, "accumulate_grad_batches": 1, "max_epochs": -1, "limit_train_batches": None},
        {"precision": "bf16-mixed", "strategy": "replicated", "devices": 2},
        {"strategy": "auto", "devices": 1, "num_nodes": 1, "val_check_interval": 1000},
        {"detect_anomaly": True, "inference_mode": False, "fast_dev_run": False, "barebones": False},
        {"accelerator": "cpu", "devices": "auto", "overfit_batches": 0.0, "limit_train_batches": 1.0},
    ],
)
def test_what_works_is_left_alone(given):
    check_trainer_flags(given)


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is one here")
@pytest.mark.parametrize("name", ["gpu", "cuda", "mps"])
def test_a_device_that_is_not_there_is_told_with_those_that_are(name):
    with pytest.raises(UsageError, match="auto"):
        check_trainer_flags({"accelerator": name})


def test_the_version_is_told():
    assert succeeds("--version").startswith("fdistill 0.")
    assert fdistill("--version").status == 0


@pytest.mark.parametrize(
    ("network", "words"),
    [(SmallUNet(8, channels=3, widths=(8,)), "channels"), (SmallUNet(16, channels=1, widths=(8,)), "resolution")],
)
def test_a_network_that_does_not_fit_the_data_names_the_option(network, words):
    with pytest.raises(ValueError, match=words):
        check_fits("denoiser", Denoiser(network, EDM(0.5)), Digits(batch_size=4))
