"""Which network moves in which turn, by which gradient it is not touched, and what stops a run."""

import functools
import itertools

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from tiny_runs import Recorded, adam, distillation, exact, fit, mlp, moved, ring, weights

from fdistill.theory.divergences import JensenShannon, ReverseKL
from fdistill.theory.noise_levels import LogUniform
from fdistill.training import DistillationModule, NonFiniteError

PARTS = ("student", "fake_score", "ratio.discriminator", "ema", "teacher")  # the teacher never moves
LEARN = {"student", "fake_score", "ratio.discriminator", "ema"}


class Turns(L.Callback):
    """Writes down which parts moved in every turn, which hold a gradient after it, and the turn's counter."""

    def __init__(self):
        self.moved, self.left_gradient, self.counters = [], [], []

    def on_train_batch_start(self, trainer, module, *_):
        self.before, self.random_state = weights(module), torch.get_rng_state()

    def on_train_batch_end(self, trainer, module, *_):
        self.moved.append({part for part in PARTS if moved(self.before, module, part)})
        self.left_gradient.append({n for n, p in module.named_parameters() if p.grad is not None})
        self.counters.append(trainer.global_step)
        assert torch.equal(self.random_state, torch.get_rng_state()), "a turn drew from the global generator"


def turns_of(module, turns):
    watch = Turns()
    run = fit(module, turns, callbacks=[watch])
    assert run.global_step == turns
    return watch


def test_a_fused_turn_moves_all_networks_and_counts_once():
    watch = turns_of(distillation(adversarial_weight=0.1), 4)
    assert watch.counters == [1, 2, 3, 4]
    assert watch.moved == [LEARN] * 4
    assert watch.left_gradient == [set()] * 4


@pytest.mark.parametrize("discriminator", ["teacher", "sample"])
def test_alternating_turns_move_one_side_at_a_time_and_leave_no_gradient(discriminator):
    module = distillation(
        turn="alternating", fake_updates_per_student=3, adversarial_weight=0.1, discriminator=discriminator
    )
    watch = turns_of(module, 9)
    fake, student = {"fake_score", "ratio.discriminator"}, {"student", "ema"}
    assert watch.counters == list(range(1, 10))
    assert watch.moved == [fake, fake, fake, student, fake, fake, fake, student, fake]
    assert watch.left_gradient == [set()] * 9


@pytest.mark.parametrize(
    ("turn", "expected"), [("fused", "ffss"), ("alternating", "fffsfs")], ids=["fused", "alternating"]
)
def test_only_the_fake_side_learns_during_the_warmup(turn, expected):
    watch = turns_of(distillation(turn=turn, fake_updates_per_student=1, fake_score_warmup=2), len(expected))
    assert ["s" if "student" in parts else "f" for parts in watch.moved] == list(expected)
    assert all(("ema" in parts) == ("student" in parts) for parts in watch.moved)


def test_the_average_has_forgotten_the_start_as_fast_when_alternating_as_when_fused():
    build = functools.partial(distillation, divergence=ReverseKL(), ema_decay=0.9, fake_score=mlp(seed=1))
    fused, alternating = build(), build(turn="alternating", fake_updates_per_student=2, fake_score_warmup=1)
    updates = []
    for module, turns in ((fused, 4), (alternating, 1 + 3 * 4)):
        start = next(module.student.parameters()).detach().clone()
        path = [start]
        watch = L.Callback()
        watch.on_train_batch_end = lambda t, m, *_, p=path: p.append(next(m.student.parameters()).detach().clone())
        fit(module, turns, callbacks=[watch])
        visited = [p for before, p in itertools.pairwise(path) if not torch.equal(before, p)]
        average, expected = next(module.ema.average.parameters()), start
        for n, now in enumerate(visited):
            share = min(0.9, (1 + n) / (10 + n))
            expected = share * expected + (1 - share) * now
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)
        updates.append(len(visited))
    assert updates == [4, 4]


def test_fake_side_learns_the_same_whatever_the_adversarial_weight():
    after = []
    for weight in (0.0, 5.0):
        module = distillation(
            adversarial_weight=weight,
            gradient_clip=1e9,
            student_optimizer=Recorded,
            fake_score_optimizer=Recorded,
        )
        fit(module, 1)
        after.append(weights(module))
    fake_side = [name for name in after[0] if name.startswith(("fake_score.", "ratio."))]
    assert all(torch.equal(after[0][name], after[1][name]) for name in fake_side)
    assert any(not torch.equal(a, after[1][n]) for n, a in after[0].items() if n.startswith("student."))


@pytest.mark.parametrize(
    ("divergence", "adversarial_weight", "has_ratio"),
    [(ReverseKL(), 0.0, False), (ReverseKL(), 0.1, True), (JensenShannon(), 0.0, True)],
    ids=["reverse KL", "reverse KL, adversarial", "Jensen-Shannon"],
)
def test_a_discriminator_is_built_only_where_something_reads_it(divergence, adversarial_weight, has_ratio, tmp_path):
    module = distillation(divergence=divergence, adversarial_weight=adversarial_weight)
    run = fit(module, 2)
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert (module.ratio is not None) == has_ratio
    assert any(name.startswith("ratio.") for name in saved) == has_ratio
    assert len(run.optimizers[1].param_groups) == 1 + has_ratio
    assert not any(name.startswith("teacher.") for name in saved)


def test_the_discriminator_has_its_own_learning_rate_where_one_is_given():
    groups = distillation(discriminator_lr=0.5).configure_optimizers()[1].param_groups
    assert [group["lr"] for group in groups] == [1e-2, 0.5]


def test_every_gradient_is_clipped_to_the_same_norm_on_its_own():
    clip = 1e-4  # far below all raw norms, so that each must arrive exactly at it
    module = distillation(adversarial_weight=0.1, gradient_clip=clip)
    module.student_optimizer = module.fake_score_optimizer = functools.partial(Recorded, lr=1e-3)
    run = fit(module, 5)
    student, fake = (torch.tensor(optimizer.norms) for optimizer in run.optimizers)
    assert student.shape == (5, 1)
    assert fake.shape == (5, 2)  # fake score, discriminator
    torch.testing.assert_close(student, torch.full_like(student, clip), rtol=1e-3, atol=0)
    torch.testing.assert_close(fake, torch.full_like(fake, clip), rtol=1e-3, atol=0)


def test_small_gradients_are_not_scaled_up():
    module = distillation(gradient_clip=1e9, student_optimizer=Recorded, fake_score_optimizer=Recorded)
    module.student_optimizer = functools.partial(Recorded, lr=0.0)
    module.fake_score_optimizer = functools.partial(Recorded, lr=0.0)
    run = fit(module, 2)
    assert max(norm for optimizer in run.optimizers for step in optimizer.norms for norm in step) < 1e3


class BreakAt(L.Callback):
    """At the start of one turn, do something to the module, and keep its weights of that moment."""

    def __init__(self, turn, action):
        self.turn, self.action = turn, action

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == self.turn:
            self.action(module)
            self.before = weights(module)


def poison(network):
    def action(module):
        with torch.no_grad():
            next(module.get_submodule(network).parameters()).fill_(torch.nan)

    return action


def infinite_gradient(network):
    def action(module):
        next(module.get_submodule(network).parameters()).register_hook(lambda gradient: gradient * torch.inf)

    return action


@pytest.mark.parametrize(
    ("action", "named"),
    [
        (poison("student"), "loss/student.*loss/fake_score"),
        (poison("fake_score"), "loss/fake_score"),
        (poison("ratio.discriminator"), "loss/discriminator"),
        (infinite_gradient("student"), "^gradient of student became"),
        (infinite_gradient("fake_score"), "^gradient of fake_score became"),
        (infinite_gradient("ratio.discriminator"), "^gradient of discriminator became"),
    ],
)
@pytest.mark.parametrize("turn", ["fused", "alternating"])
def test_what_is_not_finite_stops_the_run_before_anything_moved(action, named, turn):
    module = distillation(turn=turn, fake_updates_per_student=1, adversarial_weight=0.1)
    breaking = BreakAt(
        3 if named.count("student") else 2, action
    )  # alternating: turn 2 is the fake side's, 3 the student's
    if turn == "alternating":
        named = named.replace(".*loss/fake_score", "")
    with pytest.raises(NonFiniteError, match=named) as error:
        fit(module, 6, callbacks=[breaking])
    assert f"in turn {breaking.turn}; no weight was changed" in str(error.value)
    assert module.trainer.global_step == breaking.turn
    now = dict(module.named_parameters())
    assert all(torch.equal(now[name].nan_to_num(), breaking.before[name].nan_to_num()) for name in now)


class Inputs(L.Callback):
    """What the fake score sees in every turn."""

    def __init__(self):
        self.seen = []

    def on_fit_start(self, trainer, module):
        module.fake_score.register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[:2]))


def still(**changes):
    """A module whose weights stay, so that only the noise changes from turn to turn."""
    zero = functools.partial(adam, lr=0.0)
    return distillation(divergence=ReverseKL(), student_optimizer=zero, fake_score_optimizer=zero, **changes)


def seen_by(module, turns=3):
    inputs = Inputs()
    fit(module, turns, callbacks=[inputs])
    return [torch.cat([x.flatten(), sigma]) for x, sigma in inputs.seen]


def test_noise_is_a_function_of_seed_turn_and_rank(monkeypatch):
    first, again, other_seed = seen_by(still(seed=1)), seen_by(still(seed=1)), seen_by(still(seed=2))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other_seed))
    assert not torch.equal(first[0], first[1])
    monkeypatch.setattr(DistillationModule, "global_rank", 1)
    assert not any(map(torch.equal, first, seen_by(still(seed=1))))


def test_student_and_fake_score_see_noise_of_their_own_in_every_turn_kind():
    fused, alternating = seen_by(still()), seen_by(still(turn="alternating"))
    assert all(map(torch.equal, fused, alternating))  # the turn's number alone names the noise


@pytest.mark.parametrize("discriminator", ["teacher", "sample"])
def test_bf16_mixed_trains_all_networks_in_float32_weights(discriminator):
    module = distillation(adversarial_weight=0.1, discriminator=discriminator)
    watch = Turns()
    fit(module, 2, callbacks=[watch], precision="bf16-mixed")
    assert watch.moved == [LEARN] * 2
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_a_class_conditional_student_under_guidance_runs_both_kinds_of_turn():
    for turn in ("fused", "alternating"):
        module = distillation(
            mlp(num_classes=2), turn=turn, guidance=2.0, adversarial_weight=0.1, fake_updates_per_student=1
        )
        assert fit(module, 4, ring(num_modes=2)).global_step == 4


def test_an_exact_teacher_distils_into_a_student_of_its_own():
    module = distillation(exact([[1.0, 0.0]], [0.5]), student=mlp(), fake_score=mlp(seed=1))
    assert turns_of(module, 3).moved == [LEARN] * 3


@pytest.mark.parametrize("turn", ["fused", "alternating"])
@pytest.mark.parametrize("discriminator", ["teacher", "sample"])
def test_the_fake_side_descends_denoising_and_discrimination_of_its_own_samples(discriminator, turn):
    module = distillation(
        mlp(num_classes=2),
        student=mlp(num_classes=2, seed=1),
        fake_score=mlp(num_classes=2, seed=2),
        adversarial_weight=0.5,
        discriminator=discriminator,
        turn=turn,
        gradient_clip=1e9,
        fake_score_optimizer=Recorded,
    )
    data, part = ring(batch_size=64), next(module.micro_batches(64))
    batch = next(iter(data.train_dataloader()))
    generated = module._generate(batch, part, False)
    x, sigma, labels = generated.x, generated.sigma, generated.condition["labels"]
    x_t, real_t = generated.x_t, batch.x + sigma[:, None] * module.normal(x.shape, part.whole)

    def logit_at(x_t):
        if discriminator == "sample":
            return module.ratio.discriminator(x_t, sigma, labels, 1.0)
        return module.ratio.discriminator(module.teacher.encode(x_t, sigma, labels).features)

    error = (module.fake_score(x_t, sigma, labels) - x).square().mean(dim=1)
    likelihood = torch.sigmoid(-logit_at(x_t)).log().mean() + torch.sigmoid(logit_at(real_t)).log().mean()
    loss = ((sigma**2 + 1) / sigma**2 * error).mean() - likelihood
    learning = {n: p for n, p in module.named_parameters() if n.startswith(("fake_score.", "ratio."))}
    gradients = torch.autograd.grad(loss, list(learning.values()))
    expected = dict(zip(learning, gradients, strict=True))
    before = weights(module)
    fit(module, 1, data)
    for name, gradient in expected.items():
        change = before[name] - weights(module)[name]
        torch.testing.assert_close(change, gradient, rtol=1e-3, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_fake_score_and_discriminator_may_learn_at_noise_levels_of_their_own():
    narrow, wide = LogUniform(1.0, 1.1), LogUniform(10.0, 11.0)
    module = distillation(
        noise_levels=narrow, fake_noise_levels=wide, turn="alternating", fake_updates_per_student=1, ratio_bins=2
    )
    seen = []
    module.fake_score.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    fit(module, 4)
    assert [bool((sigma >= 10).all()) for sigma in seen] == [True, False, True, False]
    assert all((sigma <= 1.1).all() for sigma in seen[1::2])
    with pytest.raises(ValueError, match="fake_noise_levels"):
        distillation(fake_noise_levels=wide)


class Memory(DummyLogger):
    def __init__(self):
        super().__init__()
        self.lines = {}

    def log_metrics(self, metrics, step=None):
        self.lines.setdefault(step, {}).update(metrics)


@pytest.mark.parametrize("turn", ["fused", "alternating"])
def test_what_is_logged_has_every_term_under_the_number_of_its_turn(turn):
    memory = Memory()
    module = distillation(turn=turn, fake_updates_per_student=2, adversarial_weight=0.1, fake_score_warmup=1)
    fit(module, 21, logger=memory, log_every_n_steps=9)
    cycle = {"fused": 1, "alternating": 3}[turn]  # alternating runs log whole cycles
    assert list(memory.lines) == [t for t in range(21) if t % 9 < cycle]
    losses = {"loss/student", "loss/adversarial", "loss/fake_score", "loss/discriminator"}
    norms = {"grad_norm/student", "grad_norm/fake_score", "grad_norm/discriminator"}
    rest = {"ratio/log_mean", "ratio/clipped_fraction", "ratio/ess", "weight/mean", "weight/max"}
    for start in (9, 18):
        assert losses | norms | rest <= {name for t in range(start, start + cycle) for name in memory.lines[t]}
    assert all(torch.isfinite(torch.tensor(float(v))) for line in memory.lines.values() for v in line.values())
