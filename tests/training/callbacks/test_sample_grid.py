"""Pictures while a generator trains: from the same latents, above the teacher's and the nearest training images."""

import pytest
import torch
from tiny_runs import GivenData, distillation, exact, fit, mlp, ring, teacher_training, trainer

from fdistill.data import InMemorySplit, LatentsOnly
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import DiffusersUNet
from fdistill.objectives import SiD
from fdistill.theory.preconditioning import EDM
from fdistill.training.callbacks import SampleGrid, StudentDistance, sample_grid
from fdistill.training.callbacks.sample_grid import nearest_images
from fdistill.training.loggers import JsonlLogger


@pytest.fixture
def grids(monkeypatch):
    """What was grids, by file name, instead of pictures."""
    pictures = {}
    monkeypatch.setattr(sample_grid, "sample_grid_figure", lambda rows, path: pictures.update({path.name: rows}))
    monkeypatch.setattr(
        sample_grid, "compared_grid_figure", lambda rows, title, path: pictures.update({path.name: {**rows, "": title}})
    )
    monkeypatch.setattr(sample_grid, "log_picture", lambda *_: None)
    return pictures


def unet(num_classes=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(DiffusersUNet(resolution=8, widths=[8, 8], groups=4, num_classes=num_classes), EDM(1.0))


def free():
    """What a student of an analytic teacher cannot take from it."""
    return {"student": mlp(), "fake_score": mlp(seed=1), "discriminator": "sample"}


def images(n=12):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_nearest_image_is_the_one_at_the_least_root_mean_square_difference(monkeypatch):
    monkeypatch.setattr(sample_grid, "CHUNK", 5)  # several chunks, the last one shorter
    samples, training = images(4), images(17).flip(0)
    distance = (samples.double()[:, None] - training.double()[None]).square().flatten(2).mean(2).sqrt()
    found, distances = nearest_images(samples, split_of(training))
    torch.testing.assert_close(distances, distance.min(1).values, rtol=1e-12, atol=1e-7)  # copies are among them
    assert torch.equal(found, training[distance.argmin(1)])


def split_of(x):
    return InMemorySplit(x, torch.zeros(len(x), dtype=torch.int64))


def test_a_memorised_image_lies_at_distance_0():
    training = images()
    found, distances = nearest_images(training[3:5], split_of(training))
    assert torch.equal(found, training[3:5])
    torch.testing.assert_close(distances, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_student_stands_above_its_teacher_from_the_same_latents_and_the_nearest_training_image(grids, tmp_path):
    module = distillation(unet(num_classes=3), student_optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    data, grid = GivenData(images(), num_classes=3), SampleGrid(every_n_turns=1, num_samples=4)
    fit(module, 2, data, folder=tmp_path, callbacks=[grid])
    assert list(grids) == ["0000001.png", "0000002.png"]
    for turn, rows in enumerate(grids.values(), start=1):
        assert list(rows) == ["student\n1 evaluation", "teacher\n35 evaluations", "nearest\ntraining image", ""]
        student, teacher, nearest, title = rows.values()
        assert title == f"after {turn} turns"
        noise, labels = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
        assert torch.equal(student, module.generative_model().sample(noise, labels))
        assert torch.equal(teacher, module.teacher_model().sample(noise, labels))
        assert torch.equal(nearest, nearest_images(student, data.train_samples)[0])


def test_a_student_of_several_steps_starts_from_the_latents_of_its_teacher(grids, tmp_path):
    module = distillation(unet(), renoise_levels=[0.5, 0.1])
    grid, distance = SampleGrid(every_n_turns=1, num_samples=4), StudentDistance(every_n_turns=1, num_samples=8)
    run = fit(module, 1, GivenData(images()), folder=tmp_path, callbacks=[grid, distance])
    (rows,) = grids.values()
    assert list(rows)[:2] == ["student\n3 evaluations", "teacher\n35 evaluations"]
    student, teacher, *_ = rows.values()
    noise = module.generative_model().noise(4, seed=0)
    assert torch.equal(student, module.generative_model().sample(noise))
    assert torch.equal(teacher, module.teacher_model().sample(noise[:, 0]))
    assert run.callback_metrics["metric/pixel_frechet_distance"] > 0


def test_the_teacher_is_sampled_once_a_run(grids, tmp_path, monkeypatch):
    module, calls = distillation(exact([[0.0, 0.0]], [1.0]), **free()), []
    teacher = module.teacher_model
    monkeypatch.setattr(module, "teacher_model", lambda: calls.append(1) or teacher())
    fit(module, 3, folder=tmp_path, callbacks=[SampleGrid(every_n_turns=1, num_samples=4)])
    assert len(grids) == 3
    assert len(calls) == 1


def test_points_are_drawn_beside_the_teacher_s_and_training_data(grids, tmp_path):
    module, data = distillation(exact([[0.0, 0.0]], [1.0]), **free()), ring()
    fit(module, 1, data, folder=tmp_path, callbacks=[SampleGrid(every_n_turns=1, num_samples=6)])
    (rows,) = grids.values()
    assert list(rows) == ["student, 1 evaluation, after 1 turns", "teacher, 35 evaluations", "training data"]
    student, teacher, training = rows.values()
    assert student.shape == teacher.shape == training.shape == (6, 2)
    assert all((data.train_samples.copied().x == point).all(1).any() for point in training)


def test_a_teacher_in_training_stands_above_the_nearest_training_image(tmp_path, grids):
    module = teacher_training(unet().network, num_steps=2)
    fit(module, 1, GivenData(images()), folder=tmp_path, callbacks=[SampleGrid(every_n_turns=1, num_samples=4)])
    (rows,) = grids.values()
    assert list(rows) == ["teacher\n3 evaluations", "nearest\ntraining image", ""]


def test_without_a_data_module_only_the_models_are_drawn(grids, tmp_path):
    run = trainer(1, tmp_path, callbacks=[SampleGrid(every_n_turns=1, num_samples=4)])
    run.fit(teacher_training(unet().network, num_steps=2), train_dataloaders=GivenData(images()).train_dataloader())
    (rows,) = grids.values()
    assert list(rows) == ["teacher\n3 evaluations", ""]


def test_without_real_data_images_have_no_training_row(grids, tmp_path):
    module = distillation(unet(), SiD())
    fit(module, 1, LatentsOnly([1, 8, 8], batch_size=4), folder=tmp_path, callbacks=[SampleGrid(1, num_samples=4)])
    (rows,) = grids.values()
    assert list(rows) == ["student\n1 evaluation", "teacher\n35 evaluations", ""]
    assert rows["student\n1 evaluation"].isfinite().all()


def test_without_real_data_points_have_no_training_panel(grids, tmp_path):
    module = distillation(mlp(), SiD())
    fit(module, 1, LatentsOnly([2], batch_size=4), folder=tmp_path, callbacks=[SampleGrid(1, num_samples=6)])
    (rows,) = grids.values()
    assert list(rows) == ["student, 1 evaluation, after 1 turns", "teacher, 35 evaluations"]


def test_a_distance_to_training_images_is_refused_without_them():
    message = "LatentsOnly"
    with pytest.raises(ValueError, match=message) as error:
        fit(distillation(mlp(), SiD()), 1, LatentsOnly([2], batch_size=4), callbacks=[StudentDistance()])
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("drawn")
def test_pictures_are_files_of_the_run_folder(tmp_path):
    module = teacher_training(unet().network, num_steps=2)
    grid, logger = SampleGrid(every_n_turns=2, num_samples=4), JsonlLogger(str(tmp_path))
    fit(module, 2, GivenData(images()), callbacks=[grid], logger=logger)
    assert (tmp_path / "samples" / "0000002.png").read_bytes().startswith(b"\x89PNG")
