"""A teacher is tuned by adapters on its own weights: gradients of a full copy, and the base is the reference."""

import pytest
import torch
from shared_roles import Kept, chain_rule_error, doubled, moved_factors
from test_resume import SaveAt
from tiny_runs import adam, fit, mlp, ring, weights

from fdistill.core.weight_files import CheckpointError
from fdistill.io.export.folder import export_folder
from fdistill.io.load import load_model
from fdistill.models.adapters import adapter_state, merged, shares
from fdistill.objectives.reward_algorithms import DDPO, DiffusionNFT, FlowGRPO, MixGRPO
from fdistill.objectives.rewards import TargetReward
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import KarrasGrid
from fdistill.training import RewardTuningModule
from fdistill.training.roles import FullCopies, SharedBase

ALGORITHMS = {
    "DDPO": lambda: DDPO(group=2, updates=3, clip=0.01, kl_weight=0.3),
    "Flow-GRPO": lambda: FlowGRPO(group=4, kl_weight=0.3),
    "MixGRPO": lambda: MixGRPO(group=4, window=2, every=1, updates=2, kl_weight=0.3),
    "DiffusionNFT": lambda: DiffusionNFT(group=4, kl_weight=0.3),
}
ADAPTERS = SharedBase(rank=2, alpha=3.0, targets="all")


class Logged(RewardTuningModule):
    """Keeps what it logs of each turn."""

    def is_logging_turn(self, turn):
        return True

    def write_log(self, values, turn):
        self.log_of = {**getattr(self, "log_of", {}), turn: {name: float(value) for name, value in values.items()}}


def tuning(algorithm="Flow-GRPO", teacher=None, **changes):
    arguments = {"optimizer": adam, "grid": KarrasGrid(5, 0.05, 10.0), "roles": ADAPTERS}
    made = ALGORITHMS[algorithm]()
    return Logged(teacher or mlp(num_classes=2), TargetReward([1.0, -1.0]), made, **arguments | changes).train()


def data():
    return ring(batch_size=4)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_losses_and_gradients_are_those_of_a_full_copy_and_the_base_is_the_reference(name, double):
    kept = {"optimizer": Kept, "gradient_clip": 1e9}
    shared = doubled(tuning(name, **kept))
    moved_factors(shared.denoiser, seed=0)
    base = weights(shared.reference)
    reference = mlp(num_classes=2).double()
    full = doubled(tuning(name, merged(shared.denoiser), reference=reference, roles=FullCopies(), **kept))
    if shared.old is not None:
        moved_factors(shared.old, seed=1)
        full.old.load_state_dict(merged(shared.old).state_dict())
    for module in (shared, full):
        fit(module, 1, data())
    assert all(torch.equal(value, base[part]) for part, value in weights(shared.reference).items())
    assert chain_rule_error(shared, full, ("denoiser",)) < 1e-9
    ours, theirs = shared.log_of[0], full.log_of[0]
    assert ours["loss/kl"] > 0
    terms = [part for part in ours if part.startswith(("loss/", "reward/", "policy/"))]
    assert {part: ours[part] for part in terms} == pytest.approx({part: theirs[part] for part in terms}, rel=1e-9)


@pytest.mark.parametrize("name", ["DDPO", "DiffusionNFT"])
def test_the_reference_predicts_what_the_base_did_and_lies_in_memory_once(name):
    teacher = mlp(num_classes=2)
    module = tuning(name, teacher)
    x, sigma, labels = torch.randn(6, 2), torch.linspace(0.1, 9.0, 6), torch.arange(6) % 2
    fit(module, 3, data())
    assert torch.equal(module.reference(x, sigma, labels), teacher(x, sigma, labels))
    assert not torch.equal(module.denoiser(x, sigma, labels), teacher(x, sigma, labels))
    networks = [module.denoiser, module.ema.average, *([module.old] if module.old else [])]
    assert all(shares(network, module.reference) for network in networks)


@pytest.mark.parametrize("name", ["DDPO", "DiffusionNFT"])
def test_two_turns_and_two_more_equal_four_and_a_checkpoint_holds_factors_alone(name, tmp_path):
    path = tmp_path / "half.ckpt"
    whole = tuning(name)
    fit(whole, 4, data(), callbacks=[SaveAt(2, path)])
    continued = tuning(name)
    moved_factors(continued.denoiser, seed=3)  # what is not restored would show
    fit(continued, 4, data(), resume_from=path)
    end, expected = weights(continued), weights(whole)
    assert [part for part in expected if not torch.equal(end[part], expected[part])] == []
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(".lora_" in part for part in state)
    assert {part.split(".")[0] for part in state} == {"denoiser", "ema"} | ({"old"} if whole.old else set())
    for words, roles in {"FullCopies": FullCopies(), "rank.: 3": SharedBase(3, 3.0, "all")}.items():
        with pytest.raises(CheckpointError, match=words):
            fit(tuning(name, roles=roles), 4, data(), resume_from=path)


def test_a_tuned_teacher_is_loaded_from_its_adapters_and_the_file_of_its_base_alone(tmp_path):
    base = GenerativeModel.teacher(mlp(num_classes=2, seed=4), 4, 0.05, 10.0, guidance=1.5)
    folder = export_folder(base, tmp_path / "teacher")
    module = tuning(teacher=str(folder))
    path = tmp_path / "tuned.ckpt"
    fit(module, 2, data()).save_checkpoint(path)
    loaded, kept = load_model(path), load_model(path, merge=False)
    assert (loaded.kind, loaded.guidance) == ("teacher", 1.5)
    expected = merged(module.ema.average).state_dict()
    assert all(torch.equal(value, expected[part]) for part, value in loaded.denoiser.state_dict().items())
    average = adapter_state(module.ema.average)
    assert all(torch.equal(value, average[part]) for part, value in adapter_state(kept.denoiser).items())
    again = load_model(export_folder(module.generative_model(), tmp_path / "merged"))
    assert all(torch.equal(value, expected[part]) for part, value in again.denoiser.state_dict().items())
    export_folder(GenerativeModel.teacher(mlp(num_classes=2, seed=5), 4, 0.05, 10.0), folder)
    with pytest.raises(CheckpointError, match="fingerprint"):
        load_model(path)
    with pytest.raises(ValueError, match="reference differs"):
        fit(tuning(teacher=str(folder)), 3, data(), resume_from=path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": mlp(num_classes=2)}, "the base that they stand on"),
        ({"reference": "digits-teacher"}, "got digits-teacher"),
        ({"roles": SharedBase(2, targets="all", student="full")}, "role of the student alone"),
        ({"roles": SharedBase()}, "match no layer"),
    ],
)
def test_a_mistake_is_told_in_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        tuning(**changes)
    assert "\n" not in str(error.value)
