"""What a notebook does: load, sample, distil, evaluate, export; the same as the command line does."""

import numpy
import pytest
import torch
from cli_runs import python_process
from PIL import Image

import fdistill
from fdistill.data import Digits
from fdistill.io.load import load_model
from fdistill.objectives import DiffInstruct
from fdistill.sampling.generator import GenerativeModel


def test_importing_it_imports_nothing_heavy():
    heavy = "{'torch', 'lightning', 'diffusers', 'numpy', 'scipy'}"
    code = f"import sys, fdistill; dir(fdistill); print({heavy} & sys.modules.keys())"
    assert python_process(code).out == "set()\n"


def test_loading_imports_no_lightning(stock_process):
    code = "import sys, fdistill; fdistill.load; print('fdistill.io.load' in sys.modules, 'lightning' in sys.modules)"
    assert stock_process(code).out == "True False\n"


def test_everything_that_it_names_is_there():
    assert all(getattr(fdistill, name) for name in fdistill.__all__)
    assert set(fdistill.__all__) <= set(dir(fdistill))


def test_export_stays_the_function_when_the_module_of_that_name_is_imported():
    from fdistill.export import model_card

    assert callable(model_card)
    assert fdistill.export.__name__ == "export_folder"


def test_a_sample_is_that_of_the_latents_of_its_seed():
    model = fdistill.load("digits-student")
    expected = model.sample(model.noise(5, 3), torch.tensor([1, 2, 1, 2, 1]))
    assert torch.equal(fdistill.sample(model, 5, seed=3, labels=[1, 2]), expected)
    picture = fdistill.show(expected)
    assert isinstance(picture, Image.Image)
    assert picture.size == (3 * 48 + 4, 2 * 48 + 2)


def test_distil_makes_the_student_of_the_command_line(teacher_checkpoint, student_checkpoint, tmp_path):
    student = fdistill.distill(teacher_checkpoint, steps=12, batch_size=16, out=tmp_path / "run")
    expected = load_model(student_checkpoint).denoiser.state_dict()
    assert student.denoiser.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in student.denoiser.state_dict().items())
    again = load_model(tmp_path / "run" / "checkpoints" / "last.ckpt").denoiser.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.items())


def test_a_model_is_distilled_and_exported_without_a_file(tmp_path):
    teacher = fdistill.load("digits-teacher")
    student = fdistill.distill(teacher, Digits(8), DiffInstruct(), steps=1)
    assert isinstance(student, GenerativeModel)
    assert student.facts["objective"] == DiffInstruct().spec()
    folder = fdistill.export(student, tmp_path / "student")
    assert torch.equal(fdistill.sample(fdistill.load(folder), 3), fdistill.sample(student, 3))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"objective": "f-destill"}, "FDistill"),
        ({"divergence": "Shannon"}, "JensenShannon"),
        ({"objective": "SiD", "divergence": "ReverseKL"}, "divergence"),
        ({"steps": 0}, "steps"),
        ({"data": Digits(8), "batch_size": 8}, "batch size"),
        ({"student_lr": -1.0}, "learning rate"),
        ({"student_lr": "fast"}, "learning rate"),
        ({"student_lr": float("inf")}, "finite"),
        ({"data": "pictures"}, "data is one of fdistill.data"),
        ({"teacher": None}, "teacher is a model, a path"),
        ({"divergence": 3}, "divergence is an FDivergence"),
        ({"renoise_levels": 3}, "renoise_levels are noise levels"),
        ({"noise_levels": "x"}, "noise_levels is one of"),
        ({"batch_size": "many"}, "batch_size of Digits: expected a number, got 'many'"),
        ({"steps": "ten"}, "steps"),
        ({"turns": "fused"}, "turn"),
        ({"teacher": "digits-student"}, "teacher"),
        ({"teacher": "digits-teather"}, "digits-teacher"),
    ],
)
def test_a_mistake_is_one_line(arguments, word):
    with pytest.raises(ValueError, match=word) as error:
        fdistill.distill(**{"teacher": "digits-teacher", "steps": 1} | arguments)
    assert "\n" not in str(error.value)


def test_what_is_no_data_no_path_and_no_label_is_told_before_anything_is_done():
    student = fdistill.load("digits-student")
    for call, word in (
        (lambda: fdistill.evaluate(student, data="nowhere"), "data is one of fdistill.data"),
        (lambda: fdistill.load(None), "loaded from a path"),
        (lambda: fdistill.sample(student, 3, labels="seven"), "class numbers"),
        (lambda: fdistill.sample(student, 3, labels=True), "class numbers"),
        (lambda: fdistill.sample(student, 3, seed=1.5), "a seed is an integer"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
    expected = fdistill.sample(student, 2, labels=[1, 2])
    for given in (torch.tensor([1, 2]), numpy.array([1, 2]), list(numpy.array([1, 2]))):
        assert torch.equal(fdistill.sample(student, 2, labels=given, seed=numpy.int64(0)), expected)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="empty"):
        fdistill.distill("digits-teacher", steps=1, out=tmp_path)
    with pytest.raises(ValueError, match="notes"):
        fdistill.export(fdistill.load("digits-student"), tmp_path)


def test_a_path_is_no_model_and_a_model_is_no_picture():
    with pytest.raises(ValueError, match="load"):
        fdistill.sample("digits-student", 4)
    with pytest.raises(ValueError, match="sample"):
        fdistill.show(fdistill.load("digits-student"))


@pytest.mark.system
def test_it_is_evaluated_beside_its_teacher():
    few = {"n": 20, "repeats": 1, "bootstrap": 2}
    report = fdistill.evaluate(fdistill.load("digits-student"), teacher="digits-teacher", **few).report
    assert (report["n"], report["student_evaluations"], report["teacher_evaluations"]) == (20, 1, 35)
