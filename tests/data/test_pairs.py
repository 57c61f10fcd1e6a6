"""Teacher pairs are the teacher's map of their latents, survive a file bit for bit, and are drawn evenly."""

import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import exact, mlp
from torch.testing import assert_close

from fdistill.data.teacher_pairs import TeacherPairs, facts_of, read_facts
from fdistill.models.condition import takes_classes
from fdistill.sampling.generator import GenerativeModel


def teacher(num_classes=0, guidance=1.0, steps=4):
    return GenerativeModel.teacher(mlp(num_classes), steps, 0.01, 20.0, guidance)


def numbered(n=5, labels=True):
    """Pairs in which pair i holds i, -i and i."""
    values = torch.arange(float(n))[:, None].expand(n, 3)
    return TeacherPairs(values, -values, torch.arange(n) if labels else None)


def same(a, b):
    assert torch.equal(a.latents, b.latents)
    assert torch.equal(a.samples, b.samples)
    assert a.condition.keys() == b.condition.keys()
    assert all(torch.equal(value, b.condition[name]) for name, value in a.condition.items())
    assert a.facts == b.facts


@pytest.mark.parametrize("num_classes", [0, 3])
def test_pairs_are_what_the_teacher_samples_from_the_latents_of_the_seed(num_classes):
    model = teacher(num_classes, guidance=1.5)
    pairs = TeacherPairs.make(model, 10, seed=4)
    assert torch.equal(pairs.latents, model.noise(10, 4))
    assert torch.equal(pairs.samples, model.sample(pairs.latents, pairs.condition))
    classes = {name: value.tolist() for name, value in pairs.condition.items()}
    assert classes == ({"labels": [i % 3 for i in range(10)]} if num_classes else {})


def test_the_pairs_of_an_exact_gaussian_teacher_are_the_closed_form_of_its_ode():
    mean, std, sigma_max = torch.tensor([1.0, -2.0]), 0.5, 20.0
    model = GenerativeModel.teacher(exact([mean.tolist()], [std]), 160, 0.002, sigma_max)
    pairs = TeacherPairs.make(model, 50, seed=0)
    expected = mean + (sigma_max * pairs.latents - mean) * std / (std**2 + sigma_max**2) ** 0.5
    assert_close(pairs.samples, expected, atol=1e-3, rtol=0)


def test_latents_are_standard_normal_whatever_level_the_teacher_starts_from():
    latents = TeacherPairs.make(teacher(), 4000, seed=1).latents
    assert latents.mean().abs() < 4 / 8000**0.5
    assert abs(latents.std() - 1) < 4 / 16000**0.5


def test_the_batch_size_does_not_matter():
    one, other = (TeacherPairs.make(teacher(3), 11, 0, batch_size=size) for size in (4, 500))
    assert torch.equal(one.latents, other.latents)
    assert_close(one.samples, other.samples)
    assert one.facts == other.facts


def test_more_pairs_of_a_seed_begin_with_the_fewer():
    few, many = (TeacherPairs.make(teacher(3), n, seed=2) for n in (16, 48))
    assert torch.equal(few.latents, many.latents[:16])
    assert_close(few.samples, many.samples[:16])


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_file_keeps_every_bit_and_how_they_were_made(num_classes, tmp_path):
    pairs = TeacherPairs.make(teacher(num_classes), 7, seed=5, source="runs/teacher.ckpt")
    path = pairs.save(tmp_path / "new" / "pairs.safetensors")
    same(TeacherPairs.load(path), pairs)
    told = {name: read_facts(path)[name] for name in ("n", "seed", "teacher", "evaluations", "guidance")}
    assert told == {"n": "7", "seed": "5", "teacher": "runs/teacher.ckpt", "evaluations": "7", "guidance": "1.0"}
    assert [found.name for found in path.parent.iterdir()] == ["pairs.safetensors"]


def test_facts_differ_exactly_where_the_pairs_do():
    model, other = teacher(3), teacher(3)
    with torch.no_grad():
        other.denoiser.network.output.bias[0] += 1e-3
    facts = facts_of(model, 10, 0, "a")
    assert facts == facts_of(teacher(3), 10, 0, "a")
    assert facts == {**facts_of(model, 10, 0, "b"), "teacher": "a"}
    changed = [
        facts_of(model, 11, 0, "a"),
        facts_of(model, 10, 1, "a"),
        facts_of(other, 10, 0, "a"),
        facts_of(teacher(3, guidance=2.0), 10, 0, "a"),
        facts_of(teacher(3, steps=5), 10, 0, "a"),
    ]
    assert len({tuple(found.items()) for found in [facts, *changed]}) == 6


def test_what_belongs_together_is_drawn_together_and_by_the_generator_alone():
    pairs = numbered()
    draws = [pairs.draw(64, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    for latents, samples, condition in draws:
        assert latents.shape == samples.shape == (64, 3)
        assert torch.equal(latents, -samples)
        assert torch.equal(latents[:, 0].long(), condition["labels"])
    first, same, other = (draw[2]["labels"] for draw in draws)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_every_pair_is_drawn_equally_often():
    latents, _, condition = numbered(labels=False).draw(50_000, torch.Generator().manual_seed(0))
    counts = latents[:, 0].long().bincount(minlength=5)
    assert not condition
    assert ((counts - 10_000).square() / 10_000).sum() < 23.5  # chi-square of 4 degrees of freedom, p = 1e-4


def test_draws_do_not_end_with_the_pairs():
    assert len(numbered(2).draw(100, torch.Generator().manual_seed(0))[0]) == 100


def test_pairs_on_a_device_are_the_same():
    pairs = TeacherPairs.make(teacher(3), 4, 0)
    same(pairs.to("cpu"), pairs)
    assert len(pairs) == 4


@pytest.mark.parametrize("num_classes", [0, 3])
def test_pairs_fit_a_student_of_their_teacher(num_classes):
    TeacherPairs.make(teacher(num_classes), 9, 0).check_fits((2,), takes_classes(num_classes))


@pytest.mark.parametrize(
    ("pairs", "shape", "num_classes", "words"),
    [
        (numbered(), (2,), 5, "samples"),
        (numbered(), (3,), 4, "labels"),
        (numbered(), (3,), 0, "labels"),
        (numbered(labels=False), (3,), 5, "labels"),
    ],
)
def test_pairs_of_another_student_are_refused(pairs, shape, num_classes, words):
    with pytest.raises(ValueError, match=words) as error:
        pairs.check_fits(shape, takes_classes(num_classes))
    assert "fdistill pairs" in str(error.value)


def test_a_student_has_no_ode():
    with pytest.raises(ValueError, match="student"):
        TeacherPairs.make(GenerativeModel.student(mlp(), 2.0), 4, 0, "out.ckpt")


@pytest.mark.parametrize(("bad", "words"), [({"n": 0}, "pairs"), ({"batch_size": 0}, "batch_size")])
def test_numbers_out_of_range_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        TeacherPairs.make(teacher(), **{"n": 4, "seed": 0, **bad})


def test_a_teacher_that_breaks_makes_no_pairs():
    broken = teacher()
    with torch.no_grad():
        broken.denoiser.network.output.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="infinity"):
        TeacherPairs.make(broken, 3, 0)


Z = torch.zeros(4, 2)
FILES = {
    "other tensors": ({"weight": Z}, r"expected latents, samples, labels, got \['weight'\]"),
    "more tensors": ({"latents": Z, "samples": Z, "weight": Z}, "holds no pairs"),
    "no samples": ({"latents": Z}, "holds no pairs"),
    "two shapes": ({"latents": Z, "samples": torch.zeros(4, 3)}, r"one shape .* got \[4, 2\] and \[4, 3\]"),
    "no pair": ({"latents": Z[:0], "samples": Z[:0].clone()}, "N >= 1"),
    "whole numbers": ({"latents": Z.long(), "samples": Z}, "float32: got torch.int64"),
    "NaN": ({"latents": Z, "samples": torch.full((4, 2), torch.nan)}, "NaN or an infinity in 4 of 4"),
    "labels of another number": ({"latents": Z, "samples": Z + 1, "labels": torch.arange(3)}, r"int64 \[4\]"),
    "labels that are no classes": ({"latents": Z, "samples": Z + 1, "labels": torch.zeros(4)}, "torch.float32"),
    "labels below zero": ({"latents": Z, "samples": Z + 1, "labels": -torch.arange(4)}, "got -3"),
}


@pytest.mark.parametrize("mistake", FILES)
def test_a_file_of_something_else_is_refused_in_one_line(mistake, tmp_path):
    tensors, words = FILES[mistake]
    path = tmp_path / "pairs.safetensors"
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    with pytest.raises(ValueError, match=words) as error:
        TeacherPairs.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_told_with_the_command_that_makes_it(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ValueError, match=f"no pairs at {path}: make them with fdistill pairs TEACHER {path}"):
            TeacherPairs.load(path)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:20], lambda raw: b"", lambda raw: b"x" * 99])
def test_a_damaged_file_is_told(damage, tmp_path):
    path = numbered().save(tmp_path / "pairs.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="file"):
        TeacherPairs.load(path)


def test_a_file_of_another_program_is_read_too(tmp_path):
    path = tmp_path / "pairs.safetensors"
    save_file({"latents": Z.half(), "samples": Z.double() + 1}, path)
    pairs = TeacherPairs.load(path)
    assert (pairs.latents.dtype, pairs.samples.dtype, dict(pairs.condition), pairs.facts) == (torch.float32,) * 2 + (
        {},
        {},
    )


def test_pairs_of_another_guidance_are_refused_and_unknown_ones_are_not():
    pairs = TeacherPairs.make(teacher(0), 9, 0)
    pairs.check_fits((2,), {}, 1.0)
    with pytest.raises(ValueError, match="guidance"):
        pairs.check_fits((2,), {}, 2.0)
    TeacherPairs(pairs.latents, pairs.samples).check_fits((2,), {}, 2.0)
