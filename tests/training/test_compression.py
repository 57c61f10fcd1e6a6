"""Compressed gradients: nothing is lost for good, and what is dropped stays within its bound."""

import copy
import math

import pytest
import torch
from cli_runs import teacher_arguments, write_yaml
from lightning.pytorch.loggers.logger import DummyLogger
from tiny_runs import distillation, fit, teacher_training, weights
from torch import nn
from torch.testing import assert_close

from fdistill.cli.fit import run_trainer
from fdistill.core.spec import Described
from fdistill.core.weight_files import CheckpointError
from fdistill.training import NonFiniteError
from fdistill.training.parallel import ReplicatedStrategy
from fdistill.training.parallel.compression import EF21, BFloat16, Compression, PowerSGD, TopK

pytestmark = pytest.mark.system  # seconds, too many for make check

LOSSY = [TopK(0.1), EF21(0.1), EF21(0.1, momentum=0.0), PowerSGD(2)]


def named(compression):
    return " ".join([type(compression).__name__, *(str(v) for v in compression.spec()["init_args"].values())])


every = pytest.mark.parametrize("compression", [*LOSSY, BFloat16()], ids=named)


def fresh(compression):
    return Described.from_spec(compression.spec())


def network():
    return nn.ModuleDict({"wide": nn.Linear(12, 10), "convolution": nn.Conv2d(3, 8, 3), "scale": nn.PReLU()})


def entries(net):
    return sum(parameter.numel() for parameter in net.parameters())


def gradients(net, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(parameter.shape, generator=generator) for parameter in net.parameters()]


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def sent(compression, net, given):
    """What takes the place of these gradients."""
    for parameter, gradient in zip(net.parameters(), given, strict=True):
        parameter.grad = gradient.clone()
    compression.average({"net": net})
    return flat([parameter.grad for parameter in net.parameters()])


@pytest.mark.parametrize("compression", [TopK(1.0), EF21(1.0, 0.0)], ids=named)
def test_nothing_changes_where_nothing_is_dropped(compression):
    net, compression = network(), fresh(compression)
    for seed in range(3):
        given = gradients(net, seed)
        assert_close(sent(compression, net, given), flat(given), rtol=1e-6, atol=1e-6)


def test_a_gradient_of_the_rank_that_is_sent_passes_whole():
    net, compression = network(), PowerSGD(2)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        given = gradients(net, seed)
        for i, gradient in enumerate(given):
            if compression.shrinks(gradient.shape):
                rows, columns = len(gradient), gradient[0].numel()
                left, right = (torch.randn(size, generator=generator) for size in ((rows, 2), (2, columns)))
                given[i] = (left @ right).view_as(gradient)
        assert sum(map(compression.shrinks, (gradient.shape for gradient in given))) == 2
        assert (sent(compression, net, given) - flat(given)).norm() < 1e-3 * flat(given).norm()


def test_the_largest_entries_are_a_contraction_and_no_better_where_all_are_equal():
    for share in (0.01, 0.3, 1.0):
        for seed in range(5):
            v = torch.randn(200, generator=torch.Generator().manual_seed(seed)) ** 3
            own, mean, _ = TopK(share).mean_of_largest(v)
            assert torch.equal(own, mean)
            assert (own != 0).sum() == math.ceil(share * 200)
            assert (own - v).square().sum() <= (1 - share) * v.square().sum() * (1 + 1e-6)
        flat_one = torch.ones(200)
        error = (TopK(share).mean_of_largest(flat_one)[0] - flat_one).square().sum()
        assert error == pytest.approx((1 - share) * 200, abs=1e-3)


@pytest.mark.parametrize("compression", [TopK(0.1), PowerSGD(1)], ids=named)
def test_all_that_was_sent_is_all_gradients_less_the_memory(compression):
    net, compression = network(), fresh(compression)
    total, given = torch.zeros(entries(net)), torch.zeros(entries(net))
    for seed in range(20):
        found = gradients(net, seed)
        given, total = given + flat(found), total + sent(compression, net, found)
    memory = compression._memory["net"]["error"]
    left = given - total
    assert left.norm() > 1
    if isinstance(compression, PowerSGD):  # vectors are sent whole
        sizes = [parameter.numel() for parameter in net.parameters()]
        kept = [compression.shrinks(parameter.shape) for parameter in net.parameters()]
        parts = list(zip(left.split(sizes), kept, strict=True))
        assert_close(torch.cat([p for p, k in parts if not k]), torch.zeros(19), rtol=0, atol=1e-5)
        left = torch.cat([p for p, k in parts if k])
    assert_close(left, memory, rtol=1e-4, atol=1e-4)


def test_the_estimates_of_ef21_approach_a_constant_gradient_at_the_rate_of_the_contraction():
    net, compression = network(), EF21(0.1, momentum=0.0)
    given = gradients(net, 0)
    start = flat(given).square().sum()
    for turn in range(1, 11):
        found = sent(compression, net, given)
        assert (found - flat(given)).square().sum() <= 0.9**turn * start + 1e-6
    assert_close(found, flat(given), rtol=1e-5, atol=1e-5)


class Greedy(TopK):
    """Top-k that forgets what it did not send."""

    def exchange(self, gradient, shapes, memory):
        return super().exchange(gradient, shapes, memory)._replace(memory=memory)


@pytest.mark.parametrize(
    ("compression", "converges"),
    [(Greedy(0.5), False), (TopK(0.5), True), (EF21(0.5, 0.0), False), (EF21(0.5, 0.99), True)],
    ids=lambda value: named(value) if isinstance(value, Compression) else None,
)
def test_feedback_reaches_the_minimum_where_noise_hides_a_coordinate(compression, converges):
    """|x - (0, 1)|^2 / 2, of which one entry is sent, with noise of 4 in the other one."""
    net = nn.Linear(2, 1, bias=False)
    x, rates = torch.zeros(2), []
    for turn in range(1000):
        noise = torch.tensor([4.0 * (-1) ** turn, 0.0])
        x = x - 0.02 * sent(compression, net, [(x - torch.tensor([0.0, 1.0]) + noise)[None]])
        rates.append(x[1])
    reached = abs(torch.stack(rates[-200:]).mean() - 1) < 0.05
    assert reached == converges


@every
def test_a_gradient_that_is_not_finite_passes_and_leaves_the_memory(compression):
    for broken in (math.nan, math.inf):
        net, compression = network(), fresh(compression)
        sent(compression, net, gradients(net, 0))
        before = copy.deepcopy(compression._memory)
        given = gradients(net, 1)
        given[0][3, 4] = broken
        assert not sent(compression, net, given).isfinite().all()
        for key, value in before["net"].items():
            assert torch.equal(compression._memory["net"][key], value)
        assert sent(compression, net, gradients(net, 2)).isfinite().all()


@every
def test_zero_gradients_are_sent_as_zeros_and_the_next_ones_pass(compression):
    net, compression = network(), fresh(compression)
    assert not sent(compression, net, [torch.zeros_like(p) for p in net.parameters()]).any()
    assert sent(compression, net, gradients(net, 0)).any()


def test_a_parameter_without_gradient_gets_what_was_left_out():
    net, compression = nn.Linear(2, 1), TopK(0.3)
    found = [sent(compression, net, [torch.tensor([[3.0, 0.5]]), torch.tensor([2.0])])]
    for parameter in net.parameters():
        parameter.grad = None
    net.weight.requires_grad_(True)
    compression.average({"net": net})
    found.append(flat([p.grad for p in net.parameters()]))
    assert [x.tolist() for x in found] == [[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]]


def test_bytes_and_memory_are_counted():
    net = network()
    n = entries(net)
    expected = {
        TopK(0.1): (8 * math.ceil(0.1 * n), n),
        EF21(0.1, 0.0): (8 * math.ceil(0.1 * n), 2 * n + 1),
        EF21(0.1, 0.9): (8 * math.ceil(0.1 * n), 3 * n + 1),
        BFloat16(): (2 * n, 0),
        PowerSGD(2): (4 * (2 * (10 + 12) + 2 * (8 + 27) + 19), 10 * 12 + 8 * 27 + 2 * (12 + 27)),
    }
    for compression, (payload, floats) in expected.items():
        sent(compression, net, gradients(net, 0))
        assert compression.log() == {
            "compression/bytes": payload,
            "compression/state_mib": pytest.approx(4 * floats / 2**20),
        }


@every
def test_it_is_rebuilt_from_plain_values_with_its_memory(compression):
    net, compression = network(), fresh(compression)
    for seed in range(2):
        sent(compression, net, gradients(net, seed))
    again = fresh(compression)
    again.load_state_dict(copy.deepcopy(compression.state_dict()))
    for seed in range(2, 4):
        assert torch.equal(sent(again, net, gradients(net, seed)), sent(compression, net, gradients(net, seed)))
    with pytest.raises(ValueError, match="PowerSGD"):
        PowerSGD(7).load_state_dict(compression.state_dict())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TopK(0.0), "share"),
        (lambda: EF21(0.1, 1.0), r"in \[0, 1\): got 1.0"),
        (lambda: PowerSGD(0), "at least 1: got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@every
def test_a_checkpoint_with_the_memory_of_all_ranks_inside_is_refused(compression, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.strategies.DDPStrategy.load_optimizer_state_dict", lambda *_: None)
    strategy = ReplicatedStrategy(fresh(compression))
    old = {"spec": strategy.compression.spec(), "memory": {"student": {"all_ranks": torch.zeros(2, 5)}}}
    with pytest.raises(CheckpointError, match="earlier version"):
        strategy.load_optimizer_state_dict({"compression": old})


def replicated(module, turns, compression, **more):
    return fit(module, turns, strategy=ReplicatedStrategy(compression), devices=1, **more)


class Kept(DummyLogger):
    """Keeps the values of every line."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step):
        self.lines.append(metrics)


@pytest.fixture(scope="module")
def two_turns(tmp_path_factory):
    """A checkpoint after two compressed turns."""
    path = tmp_path_factory.mktemp("compressed") / "two.ckpt"
    replicated(distillation(adversarial_weight=0.1), 2, TopK(0.2)).save_checkpoint(path)
    return path


def test_a_run_goes_on_with_what_was_left_out_bit_for_bit(two_turns):
    whole, resumed = distillation(adversarial_weight=0.1), distillation(adversarial_weight=0.1)
    replicated(whole, 4, TopK(0.2))
    replicated(resumed, 4, TopK(0.2), resume_from=two_turns)
    expected, found = weights(whole), weights(resumed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    saved = torch.load(two_turns, weights_only=True)["own"]
    held = {"student": whole.student, "fake_score": whole.fake_score, "discriminator": whole.ratio.discriminator}
    assert {name: tuple(error.shape) for name, error in saved.items()} == {
        f"compression/{name}/error": (entries(net),) for name, net in held.items()
    }


def test_another_compression_begins_anew_and_says_so(two_turns):
    module = distillation(adversarial_weight=0.1)
    with pytest.warns(UserWarning, match="TopK"):
        replicated(module, 3, None, resume_from=two_turns)


def test_every_network_of_a_turn_is_counted_and_logged():
    logger, module = Kept(), distillation(turn="alternating", fake_updates_per_student=1)
    replicated(module, 4, TopK(0.5), logger=logger, log_every_n_steps=1)
    student, discriminator = entries(module.student), entries(module.ratio.discriminator)
    fake, mine = 8 * (math.ceil(student / 2) + math.ceil(discriminator / 2)), 8 * math.ceil(student / 2)
    assert [line["compression/bytes"] for line in logger.lines] == [fake, mine, fake, mine]
    assert logger.lines[-1]["compression/state_mib"] == pytest.approx(4 * (2 * student + discriminator) / 2**20)


def test_a_nan_stops_the_run_before_a_weight_moves():
    module = teacher_training()
    before = weights(module)
    next(module.denoiser.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteError, match="gradient"):
        replicated(module, 2, TopK(0.01))
    assert all(torch.equal(before[name], value) for name, value in weights(module).items())


def test_it_is_given_to_the_strategy_in_yaml(tmp_path):
    strategy = {"class_path": "ReplicatedStrategy"}
    strategy["init_args"] = {"compression": {"class_path": "PowerSGD", "init_args": {"rank": 3}}}
    config = write_yaml(tmp_path / "strategy.yaml", trainer={"strategy": strategy, "max_steps": 1})
    built = run_trainer([*map(str, teacher_arguments(tmp_path / "run", "--config", config)[1:])], run=False)
    assert built.trainer.strategy.compression.spec()["init_args"] == {"rank": 3}
