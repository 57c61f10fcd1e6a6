"""Whatever the objective: who learns, what is evaluated, and that no other network feels the student's loss."""

import functools
import itertools

import lightning.pytorch as L
import pytest
import torch
from cases import slow_but
from lightning.pytorch.loggers.logger import DummyLogger
from objective_runs import OBJECTIVES, SHIPPED, Asking, learning_by
from tiny_runs import Recorded, fit, mlp, moved, ring, weights

from fdistill.data import LatentsOnly
from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.objectives import (
    DMD2,
    SIM,
    Adversarial,
    DiffInstruct,
    FDistill,
    Fisher,
    ScoreOfMixture,
    SiD,
    SiDA,
    UniInstruct,
    WarmStarted,
)
from fdistill.theory.divergences import ForwardKL, JensenShannon, ReverseKL
from fdistill.theory.schedules import Linear, Steps
from fdistill.training import DistillationModule

WITH_DISCRIMINATOR = sorted(name for name, build in OBJECTIVES.items() if build().needs.discriminator)
TURNS = ("fused", "alternating")
CASES = itertools.product(WITH_DISCRIMINATOR, ["teacher", "fake_score", "sample"])
CASES = [(*case, turn) for case, turn in zip(CASES, itertools.cycle(TURNS))]  # each objective learns in both
CASES += [(name, "none", turn) for name in OBJECTIVES if name not in WITH_DISCRIMINATOR for turn in TURNS]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Path of 64 pairs whose samples are the latents, moved."""
    latents = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    return str(TeacherPairs(latents, latents + 1).save(tmp_path_factory.mktemp("pairs") / "pairs.safetensors"))


class Losses(DummyLogger):
    """Keeps every loss, and which networks moved and which gradients stayed after every turn."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def log_metrics(self, metrics, step=None):
        self.values |= {(name, step): value for name, value in metrics.items() if name.startswith("loss/")}


class Movement(L.Callback):
    """Keeps which parts have moved, and which gradients are left after every turn."""

    def __init__(self):
        self.moved, self.left = [], set()

    def on_train_batch_start(self, trainer, module, *_):
        self.before = weights(module)

    def on_train_batch_end(self, trainer, module, *_):
        parts = ("student", "fake_score", "ratio.discriminator", "teacher")
        self.moved.append({part for part in parts if moved(self.before, module, part)})
        self.left |= {name for name, parameter in module.named_parameters() if parameter.grad is not None}


def test_every_objective_is_here():
    assert set(OBJECTIVES) == SHIPPED


@pytest.mark.parametrize(("name", "discriminator", "turn"), slow_but(CASES, *CASES[::2]), ids=map("-".join, CASES))
def test_every_objective_moves_the_student_and_what_it_needs_and_never_the_teacher(name, discriminator, turn, pairs):
    objective = OBJECTIVES[name]()
    module = learning_by(
        objective,
        turn=turn,
        discriminator=discriminator,
        fake_updates_per_student=1,
        pairs=pairs if objective.needs.pairs else None,
    )
    watch, losses = Movement(), Losses()
    fit(module, 4, callbacks=[watch], logger=losses, log_every_n_steps=1)
    others = ({"fake_score"} if module.fake_score is not None else set()) | (
        {"ratio.discriminator"} if objective.needs.discriminator else set()
    )
    assert watch.moved[-1] == ({"student"} if turn == "alternating" else {"student", *others})
    assert set().union(*watch.moved) == {"student", *others}
    assert watch.left == set()
    assert all(torch.isfinite(torch.tensor(value)) for value in losses.values.values())
    assert any(losses.values.get((f"loss/{term}", 3)) is not None for term in ("student", "adversarial"))


class Evaluations(L.Callback):
    """How often each network ran its encoder and decoder, by turn."""

    def __init__(self):
        self.turns, self.now = [], None

    def on_fit_start(self, trainer, module):
        for name in ("teacher", "fake_score", "student"):
            denoiser = getattr(module, name)
            if denoiser is not None:
                for half in ("encode", "decode"):
                    self._watch(denoiser.network, half, f"{name} {half}")
        if module.ratio is not None:
            self._watch(module.ratio.discriminator, "forward", "discriminator")

    def on_train_batch_start(self, *_):
        self.now = {}
        self.turns.append(self.now)

    def _watch(self, network, method, name):
        run = getattr(network, method)

        def counted(*arguments):
            self.now[name] = self.now.get(name, 0) + 1
            return run(*arguments)

        setattr(network, method, counted)


def evaluated(objective, turns, **changes):
    """For every turn (student, teacher, fake score, discriminator): encoder/decoder runs, and the discriminator's."""
    watch = Evaluations()
    fit(learning_by(objective, **{"fake_updates_per_student": 1} | changes), turns, callbacks=[watch])
    found = []
    for turn in watch.turns:
        halves = [
            f"{turn.get(f'{name} encode', 0)}/{turn.get(f'{name} decode', 0)}"
            for name in ("student", "teacher", "fake_score")
        ]
        found.append((*halves, turn.get("discriminator", 0)))
    return found


NEEDED = {  # student, teacher, fake score (encoder/decoder runs), discriminator; fused, then the turn of each side
    "DiffInstruct": (
        DiffInstruct,
        "none",
        ("1/1", "1/1", "1/1", 0),
        ("1/1", "0/0", "1/1", 0),
        ("1/1", "1/1", "1/1", 0),
    ),
    "SiD": (SiD, "teacher", ("1/1", "1/1", "1/1", 0), ("1/1", "0/0", "1/1", 0), ("1/1", "1/1", "1/1", 0)),
    "reverse KL, weight 0": (
        lambda: FDistill(ReverseKL(), 0.0),
        "teacher",
        ("1/1", "1/1", "1/1", 0),
        ("1/1", "0/0", "1/1", 0),
        ("1/1", "1/1", "1/1", 0),
    ),
    "SiDA, weight 0": (
        lambda: SiDA(0.0),
        "fake_score",
        ("1/1", "1/1", "1/1", 0),
        ("1/1", "0/0", "1/1", 0),
        ("1/1", "1/1", "1/1", 0),
    ),
    "Adversarial": (
        Adversarial,
        "teacher",
        ("1/1", "2/0", "0/0", 3),
        ("1/1", "1/0", "0/0", 1),
        ("1/1", "1/0", "0/0", 1),
    ),
    "Adversarial on the sample": (
        Adversarial,
        "sample",
        ("1/1", "0/0", "0/0", 3),
        ("1/1", "0/0", "0/0", 2),
        ("1/1", "0/0", "0/0", 1),
    ),
    "Jensen-Shannon": (
        lambda: FDistill(JensenShannon(), 0.3),
        "teacher",
        ("1/1", "2/1", "1/1", 3),
        ("1/1", "1/0", "1/1", 1),
        ("1/1", "1/1", "1/1", 1),
    ),
    "SiDA": (SiDA, "fake_score", ("1/1", "1/1", "2/1", 3), ("1/1", "0/0", "2/1", 2), ("1/1", "1/1", "1/1", 1)),
    "Uni-Instruct": (
        lambda: UniInstruct(ForwardKL()),
        "teacher",
        ("1/1", "2/1", "1/1", 3),
        ("1/1", "1/0", "1/1", 1),
        ("1/1", "1/1", "1/1", 1),
    ),
}


@pytest.mark.parametrize("case", NEEDED)
def test_a_turn_evaluates_what_its_objective_needs_and_nothing_else(case):
    build, reads, fused, fakes, students = NEEDED[case]
    assert evaluated(build(), 2, discriminator=reads) == [fused, fused]
    assert evaluated(build(), 2, discriminator=reads, turn="alternating") == [fakes, students]


def test_pairs_cost_one_more_run_of_the_student_and_guidance_one_more_of_the_teacher(pairs):
    assert evaluated(OBJECTIVES["DMD"](), 1, pairs=pairs) == [("2/2", "1/1", "1/1", 0)]
    guided = {"teacher": mlp(num_classes=2), "student": mlp(num_classes=2, seed=1), "guidance": 2.0}
    assert evaluated(SiD(), 1, **guided) == [("1/1", "2/2", "1/1", 0)]
    assert evaluated(FDistill(JensenShannon()), 1, **guided) == [("1/1", "3/2", "1/1", 3)]


def test_a_warm_start_evaluates_what_each_update_needs():
    objective = WarmStarted(SIM(), Adversarial(), 1)
    assert evaluated(objective, 4, discriminator="sample", turn="alternating") == [
        ("1/1", "0/0", "1/1", 2),
        ("1/1", "0/0", "0/0", 1),
        ("1/1", "0/0", "1/1", 2),
        ("1/1", "1/1", "1/1", 0),
    ]


@pytest.mark.parametrize("build", [lambda weight: FDistill(ReverseKL(), weight), SiDA], ids=["reverse KL", "SiDA"])
def test_a_student_turn_without_adversarial_weight_asks_for_no_logit(build):
    late, how = Steps([0.0, 0.3], [1]), {"discriminator": "sample", "turn": "alternating"}
    turns = evaluated(build(late), 4, **how)
    assert turns[:2] == [*evaluated(build(0.3), 1, **how), evaluated(build(0.0), 2, **how)[1]]
    assert turns[2:] == evaluated(build(0.3), 4, **how)[2:]
    assert [turn[-1] for turn in turns] == [2, 0, 2, 1]


def test_what_nobody_needs_is_not_built():
    module = learning_by(Adversarial())
    assert module.fake_score is None
    (group,) = module.configure_optimizers()[1].param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in module.ratio.parameters()}
    assert learning_by(SiD()).ratio is None
    assert learning_by(Adversarial(), discriminator="fake_score").fake_score is not None  # its encoder is read


@pytest.mark.parametrize("discriminator", ["teacher", "fake_score", "sample"])
def test_the_other_networks_learn_the_same_whatever_the_student_descends(discriminator):
    """In a fused turn all graphs meet at one noised sample: no gradient of the student's loss may leak."""
    objectives = [FDistill(JensenShannon()), DMD2(5.0), SiDA(5.0), UniInstruct(ForwardKL(), "exact")]
    if discriminator != "fake_score":  # whose encoder learns from a discriminator too
        objectives += [DiffInstruct(), Fisher(), SIM()]
    ends = []
    for objective in objectives:
        module = learning_by(
            objective,
            discriminator=discriminator,
            fake_score=mlp(seed=2),
            gradient_clip=1e9,
            student_optimizer=Recorded,
            fake_score_optimizer=Recorded,
        )
        fit(module, 1)
        ends.append(weights(module))
    for end in ends[1:]:
        other_side = [name for name in end if name.startswith(("fake_score.", "ratio.discriminator.", "teacher."))]
        assert [name for name in other_side if not torch.equal(end[name], ends[0][name])] == []
        assert any(not torch.equal(end[name], ends[0][name]) for name in end if name.startswith("student."))


def test_a_warm_start_changes_the_objective_at_its_update_and_not_a_turn_sooner():
    warm = WarmStarted(SiD(), DiffInstruct(), 2)
    first, later = Asking(warm.first), Asking(warm.objective)
    fit(learning_by(warm, turn="alternating", fake_updates_per_student=2, fake_score_warmup=1), 13)
    assert [at.update for at in first.seen] == [0, 1]
    assert [at.update for at in later.seen] == [2, 3]


def test_a_warm_started_run_is_its_first_objective_until_then():
    for turns, same in ((2, True), (3, False)):
        ends = []
        for objective in (WarmStarted(SiD(), DiffInstruct(), 2), DiffInstruct()):
            module = learning_by(objective)
            fit(module, turns)
            ends.append(weights(module))
        assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items()) == same


@pytest.mark.parametrize("turns", [1, 2])
def test_an_adversarial_weight_that_starts_at_zero_is_no_term_until_it_rises(turns):
    schedule = Linear(0.0, 1.0, updates=4)  # 0 at update 0, 1/4 at update 1
    students = []
    for weight in (0.0, schedule):
        module = learning_by(FDistill(JensenShannon(), weight), fake_score=mlp(seed=2))
        fit(module, turns)
        students.append({name: value for name, value in weights(module).items() if name.startswith("student.")})
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items()) == (turns == 1)


@pytest.mark.parametrize("turn", ["fused", "alternating"])
@pytest.mark.parametrize("objective", [DiffInstruct(), SiD()], ids=lambda value: type(value).__name__)
def test_without_real_data_the_student_learns_from_latents_and_never_sees_a_sample(objective, turn):
    module = learning_by(objective, turn=turn, fake_updates_per_student=1)
    before = weights(module)
    fit(module, 4, LatentsOnly([2], batch_size=8))  # its samples are NaN
    assert moved(before, module, "student")
    assert all(value.isfinite().all() for value in weights(module).values())


def test_an_objective_that_needs_real_data_refuses_latents():
    with pytest.raises(ValueError, match="FDistill"):
        fit(learning_by(FDistill(JensenShannon())), 1, LatentsOnly([2], batch_size=8))


@pytest.mark.parametrize("discriminator", ["teacher", "sample"])
def test_under_bf16_an_objective_is_asked_in_float32(discriminator):
    for objective in (FDistill(JensenShannon(), 0.1), UniInstruct(ForwardKL()), SiDA(0.1)):
        asking = Asking(objective)
        module = learning_by(objective, discriminator=discriminator, fake_score=mlp(seed=2))
        before = weights(module)
        fit(module, 1, precision="bf16-mixed")
        floats = [value for value in asking.seen[0] if isinstance(value, torch.Tensor) and value.is_floating_point()]
        assert {value.dtype for value in floats} == {torch.float32}
        assert all(moved(before, module, part) for part in ("student", "fake_score", "ratio.discriminator"))


def test_the_skews_of_score_of_mixture_are_drawn_from_the_turns_noise():
    ends = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(ends))  # the global state is not asked
        module = learning_by(ScoreOfMixture(normaliser="sigma"), seed=0, fake_score=mlp(seed=2))
        module.seed = seed
        fit(module, 2)
        ends.append(weights(module)["student.network.input.weight"])
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_the_ranks_own_noise_is_what_an_objective_draws_from(monkeypatch):
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr(DistillationModule, "global_rank", rank)
        asking = Asking(objective := SiD())
        fit(learning_by(objective, student_optimizer=functools.partial(Recorded, lr=0.0)), 1)
        seen.append(asking.seen[0].x_t)
    assert not torch.equal(*seen)


def test_batches_of_another_size_than_the_pairs_are_served(pairs):
    asking = Asking(objective := OBJECTIVES["DMD"]())
    fit(learning_by(objective, pairs=pairs), 1, ring(batch_size=100))
    assert asking.seen[0].regression.x.shape == (100, 2)
