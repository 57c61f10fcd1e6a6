"""Three roles on one frozen base learn what three networks of the same merged weights learn."""

import functools

import pytest
import torch
from cases import slow_but
from objective_runs import OBJECTIVES, learning_by
from shared_roles import KEEPS, ROLES, Kept, chain_rule_error, doubled, error_beside_separate, moved, separate
from stock_models import SMALL_UNET
from test_resume import SaveAt
from tiny_runs import GivenData, distillation, fit, mlp, ring, weights

from fdistill.core.weight_files import CheckpointError
from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.io.export.folder import export_folder
from fdistill.io.load import load_model
from fdistill.models.adapters import (
    adapter_parameters,
    adapter_state,
    merged,
    own_parameters,
    shares,
    sharing_copy,
)
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet, StockUNet
from fdistill.objectives import DMD2, DiffInstruct, SiD, SiDA
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM
from fdistill.training.averaging.ema import EMA
from fdistill.training.averaging.power_ema import PowerEMA
from fdistill.training.callbacks import FastNetworks
from fdistill.training.parallel import ShardedStrategy
from fdistill.training.planning import GPUS, plan_run
from fdistill.training.roles import FullCopies, SharedBase


@pytest.mark.parametrize("turn", slow_but(["fused", "alternating"], "fused"))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_s_gradients_are_those_of_separate_networks(name, turn, double, tmp_path):
    if turn == "alternating" and name == "Fisher":
        pytest.skip("it has no such turns")
    objective, latents = OBJECTIVES[name](), torch.randn(64, 2)
    pairs = TeacherPairs(latents, latents + 1).save(tmp_path / "pairs.safetensors") if objective.needs.pairs else None

    def build(teacher=None, **changes):
        how = {"teacher": teacher or mlp(), "turn": turn, "fake_updates_per_student": 1, "student": None}
        module = learning_by(OBJECTIVES[name](), **how | KEEPS | changes, pairs=pairs and str(pairs))
        if module.pairs is not None:
            module.pairs.latents, module.pairs.samples = (t.double() for t in (module.pairs.latents, latents + 1))
        return module

    assert error_beside_separate(build, 2) <= 1e-10


def unet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(SmallUNet(8, 1, (4, 8), num_classes=2), EDM(0.5))


def stock():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = SMALL_UNET | {"in_channels": 1, "out_channels": 1, "num_class_embeds": 2}
        return Denoiser(StockUNet(config, 1.0, True), EDM(0.5))


def images(num_classes=2):
    return GivenData(torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)), num_classes, batch_size=4)


@pytest.mark.parametrize(
    ("student", "fake_score"), [("adapter", "adapter"), ("full", "adapter"), ("adapter", "full")], ids=str
)
def test_mixed_roles_of_a_unet_learn_as_separate_networks(student, fake_score, double):
    def build(teacher=None, **changes):
        return distillation(teacher or unet(), SiDA(0.1), discriminator="fake_score", **KEEPS | changes)

    shared = moved(doubled(build(roles=SharedBase(**ROLES, student=student, fake_score=fake_score))))
    full = separate(shared, build)
    fit(shared, 2, images())
    fit(full, 2, images())
    assert chain_rule_error(shared, full) <= 1e-10


@pytest.mark.parametrize("objective", [DMD2(0.1), SiD()], ids=["DMD2", "SiD"])
def test_gradients_are_the_same_with_activations_computed_again(objective, double):
    """Also where student and fake score are differentiated in one turn, and weights rest."""

    def build(teacher=None, **changes):
        checkpointed = isinstance(changes.get("roles"), SharedBase)
        return distillation(teacher or stock(), objective, gradient_checkpointing=checkpointed, **KEEPS | changes)

    assert error_beside_separate(build, 2, lambda: images(1)) <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_gradients_are_the_same_in_compiled_networks(backend, dtype, double):
    def build(teacher=None, **changes):
        held = dtype if isinstance(changes.get("roles"), SharedBase) else "float32"
        return distillation(teacher or unet(), SiD(), teacher_dtype=held, **KEEPS | changes)

    compiled = FastNetworks(backend=backend, tf32=False)
    assert error_beside_separate(build, 2, images, callbacks=[compiled]) <= 1e-10


@pytest.mark.parametrize("checkpointed", slow_but([False, True], True), ids=["", "checkpointed"])
def test_on_a_base_in_int8_gradients_are_those_of_its_rounded_weights(checkpointed, double):
    """The other run's teacher is the same base, in floating point again."""

    def build(teacher=None, **changes):
        is_shared = isinstance(changes.get("roles"), SharedBase)
        how = {
            "gradient_checkpointing": checkpointed and is_shared,
            "teacher_dtype": "int8" if is_shared else "float32",
        }
        return distillation(teacher or stock(), SiDA(0.1), **how | KEEPS | changes)

    assert error_beside_separate(build, 2, lambda: images(1)) <= 1e-10


def shared_run(**changes):
    roles = changes.pop("roles", SharedBase(rank=2, targets="all"))
    return distillation(mlp(), adversarial_weight=0.1, roles=roles, **changes)


def test_the_base_does_not_change_by_a_bit_and_is_in_memory_once():
    module = shared_run(turn="alternating", fake_updates_per_student=1)
    before = weights(module.teacher)
    fit(module, 200, ring(batch_size=8))
    assert all(torch.equal(value, before[name]) for name, value in weights(module.teacher).items())
    networks = (module.student, module.fake_score, module.ema.average)
    assert all(shares(network, module.teacher) for network in networks)
    assert all(any(factor.abs().max() > 0 for factor in adapter_parameters(network)) for network in networks)
    owned = {id(value) for value in module.parameters()}
    assert len(owned) == sum(len(own_parameters(net)) for net in (module.teacher, *networks, module.ratio))


def test_an_average_of_adapters_is_one_of_each_factor():
    module = moved(shared_run())
    average, power = EMA(module.student, 0.5), PowerEMA(module.student, [0.1])
    start = {name: value.clone() for name, value in adapter_state(module.student).items()}
    moved_on = sharing_copy(module.student)
    with torch.no_grad():
        for factor in adapter_parameters(moved_on):
            factor.add_(1.0)
    average.update(moved_on, 1000)
    power.update(moved_on)
    for name, value in adapter_state(average.average).items():
        torch.testing.assert_close(value, start[name] + 0.5)
    assert power.names == list(start)
    assert all(torch.equal(value, start[name] + 1) for name, value in power.named()[0.1].items())


def test_a_fake_score_imitates_the_factors_of_the_student():
    module = distillation(
        mlp(), DiffInstruct(), roles=SharedBase(rank=2, targets="all"), imitation=0.5, fake_score_optimizer=Kept
    )
    pairs = zip(adapter_parameters(module.fake_score), adapter_parameters(module.student), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)  # both begin as the same adapter
    before = [value.clone() for value in adapter_parameters(module.fake_score)]
    fit(module, 1)
    for old, now, student in zip(
        before, adapter_parameters(module.fake_score), adapter_parameters(module.student), strict=True
    ):
        torch.testing.assert_close(now, (old + student) / 2)
    with pytest.raises(ValueError, match="imitat"):
        distillation(mlp(), DiffInstruct(), roles=SharedBase(2, None, "all", "full"), imitation=0.5)


@pytest.mark.parametrize("student", ["adapter", "full"])
def test_three_turns_and_three_more_equal_six(student, tmp_path):
    path = tmp_path / "half.ckpt"
    roles = SharedBase(rank=2, targets="all", student=student)
    whole = shared_run(roles=roles, imitation=1.0)
    before = weights(whole.teacher)
    uninterrupted = fit(whole, 6, callbacks=[SaveAt(3, path)])
    continued = moved(shared_run(roles=roles))
    resumed = fit(continued, 6, resume_from=path)
    end, expected = weights(continued), weights(whole)
    assert [name for name in expected if not torch.equal(end[name], expected[name])] == []
    assert all(torch.equal(value, before[name]) for name, value in weights(continued.teacher).items())
    for a, b in zip(resumed.optimizers, uninterrupted.optimizers, strict=True):
        states = a.state_dict()["state"], b.state_dict()["state"]
        assert all(torch.equal(states[0][i][key], states[1][i][key]) for i in states[0] for key in states[0][i])


@pytest.mark.slow
def test_a_run_that_is_killed_after_any_of_twenty_turns_ends_as_if_it_was_not(tmp_path):
    roles = SharedBase(rank=2, targets="all")
    saves = [SaveAt(turn, tmp_path / f"{turn}.ckpt") for turn in range(1, 21)]
    build = functools.partial(shared_run, roles=roles, turn="alternating", fake_updates_per_student=1)
    whole_run = build()
    fit(whole_run, 21, callbacks=saves)
    for save in saves:
        fit(continued := build(), 21, resume_from=save.path)
        end, expected = weights(continued), weights(whole_run)
        assert [name for name in expected if not torch.equal(end[name], expected[name])] == [], save.turn


def test_checkpoints_hold_what_learns_and_refuse_other_roles(tmp_path):
    path = tmp_path / "a.ckpt"
    fit(shared_run(), 2).save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    roles = ("student.", "fake_score.", "ema.average.")
    assert all(".lora_" in name for name in state if name.startswith(roles))
    assert {name.split(".")[0] for name in state} == {"student", "fake_score", "ema", "ratio"}
    others = {"FullCopies": FullCopies(), "rank.: 3": SharedBase(3, targets="all"), "5.0": SharedBase(2, 5.0, "all")}
    for words, roles in others.items():
        with pytest.raises(CheckpointError, match=words) as error:
            fit(shared_run(roles=roles), 3, resume_from=path)
        assert "\n" not in str(error.value)


@pytest.fixture
def teacher_file(tmp_path):
    teacher = GenerativeModel.teacher(mlp(seed=4), num_steps=4, sigma_min=0.01, sigma_max=10.0)
    return export_folder(teacher, tmp_path / "teacher")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_student_is_loaded_whole_from_its_adapters_and_its_teacher_s_file(dtype, tmp_path, teacher_file):
    module = distillation(str(teacher_file), roles=SharedBase(2, 3.0, "all"), teacher_dtype=dtype)
    path = tmp_path / "a.ckpt"
    fit(module, 4).save_checkpoint(path)
    loaded = load_model(path)
    expected = merged(module.ema.average).state_dict()
    found = loaded.denoiser.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    kept = load_model(path, merge=False).denoiser
    assert all(torch.equal(v, adapter_state(module.ema.average)[n]) for n, v in adapter_state(kept).items())
    again = load_model(export_folder(module.generative_model(), tmp_path / "student"))
    assert all(torch.equal(value, expected[name]) for name, value in again.denoiser.state_dict().items())


def test_another_base_or_none_is_refused_in_one_line(tmp_path, teacher_file):
    path = tmp_path / "a.ckpt"
    fit(distillation(str(teacher_file), roles=SharedBase(2, targets="all")), 1).save_checkpoint(path)
    other = GenerativeModel.teacher(mlp(seed=5), num_steps=4, sigma_min=0.01, sigma_max=10.0)
    export_folder(other, teacher_file)
    with pytest.raises(CheckpointError, match="fingerprint"):
        load_model(path)
    with pytest.raises(ValueError, match="teacher differs"):
        fit(distillation(str(teacher_file), roles=SharedBase(2, targets="all")), 2, resume_from=path)
    fit(distillation(mlp(), roles=SharedBase(2, targets="all")), 1).save_checkpoint(path)
    with pytest.raises(CheckpointError, match="no file"):
        load_model(path)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"student": mlp(seed=1)}, "leave student out"),
        ({"fake_score": mlp(seed=1)}, "leave fake_score out"),
        ({"roles": SharedBase()}, "match no layer"),
        ({"roles": SharedBase(99, targets="all")}, "rank"),
        ({"teacher_dtype": "int4"}, "int8"),
    ],
)
def test_what_cannot_stand_on_the_base_is_refused_in_one_line(changes, word):
    with pytest.raises(ValueError, match=word) as error:
        shared_run(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "word"), [({"student": "lora"}, "adapter"), ({"student": "full", "fake_score": "full"}, "FullCopies")]
)
def test_unknown_roles_are_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        SharedBase(**arguments)


def test_a_base_in_int8_is_not_sharded():
    with pytest.raises(ValueError, match="teacher_dtype") as error:
        ShardedStrategy().shards(shared_run(teacher_dtype="int8"))
    assert "\n" not in str(error.value)


def test_a_plan_counts_the_base_once():
    module, full = shared_run(), distillation(mlp(), adversarial_weight=0.1)
    base = sum(value.numel() for value in module.teacher.parameters())
    factors = sum(value.numel() for value in adapter_parameters(module.student))
    plans = [plan_run(each, 8, 100, GPUS["A100"]) for each in (module, full)]
    counts = plans[0].parameters
    assert (counts["teacher"], counts["student"], counts["fake_score"], counts["ema"]) == (base, *[factors] * 3)
    assert plans[1].parameters["student"] == base
    learning = 2 * factors + counts["discriminator"]
    assert plans[0].memory["optimiser states"] == 2 * 4 * learning  # Adam
    assert plans[0].memory["weights of student"] == 4 * factors
    halved = plan_run(shared_run(teacher_dtype="bfloat16"), 8, 100, GPUS["A100"])
    assert halved.memory["weights of teacher"] < 0.7 * plans[0].memory["weights of teacher"]
    assert {name: turn.flops for name, turn in halved.turns.items()} == {n: t.flops for n, t in plans[0].turns.items()}
    in_int8 = plan_run(shared_run(teacher_dtype="int8"), 8, 100, GPUS["A100"])
    assert in_int8.memory["weights of teacher"] < 0.45 * plans[0].memory["weights of teacher"]
    assert in_int8.memory["weights of student"] == plans[0].memory["weights of student"]
    assert {name: turn.flops for name, turn in in_int8.turns.items()} == {n: t.flops for n, t in plans[0].turns.items()}


def test_the_rest_of_a_run_takes_adapters():
    """Networks without weights but on rank 0, a base in bfloat16, samples while training."""
    module = shared_run(meta_start=True, teacher_dtype="bfloat16")
    fit(module, 2, ring())
    made = module.generative_model()
    assert made.sample(made.noise(4, 0)).isfinite().all()
    assert {value.dtype for value in adapter_parameters(module.student)} == {torch.float32}
