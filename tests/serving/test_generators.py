"""Served generators: what prompts mean, what is refused, and what happens when a folder is made anew."""

import gc
import os
import shutil
import weakref

import pytest
import torch
from services import NAMES, SIZE, export

from fdistill.core.presets import checkpoint, checkpoints
from fdistill.core.weight_files import CheckpointError
from fdistill.io.export import export_folder
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP
from fdistill.sampling.generator import GenerativeModel
from fdistill.serving.generators import Generator, check_safe
from fdistill.serving.settings import How
from fdistill.serving.shelf import Shelf, tidy
from fdistill.theory.preconditioning import EDM


@pytest.mark.parametrize(("prompt", "label"), [("0", 0), ("9", 9), (" 7 ", 7), ("seven", 7), ("Seven", 7), ("007", 7)])
def test_a_prompt_is_the_number_or_name_of_a_class(generator, prompt, label):
    assert generator.condition(prompt)["labels"].tolist() == [label]


WRONG = ["", "10", "-1", "1.5", "eleven", "x" * 5000, "9" * 30, "٣", "3; 4", "digit=3"]
PLACES = ["/etc/passwd", "../x", "./x", "~/x", "https://example.org/x.png", "file:///x", "C:\\x"]


@pytest.mark.parametrize("prompt", [*WRONG, *PLACES, "data:image/png;base64,AAAA"])
def test_everything_else_is_refused(generator, prompt):
    with pytest.raises(ValueError, match="a prompt"):
        generator.condition(prompt)


def test_prompts_of_several_sets_of_classes_name_each(tmp_path):
    made = Generator("two", export(tmp_path / "two", {"digit": 10, "ground": 4}), How(2))
    for prompt in ("digit=7, ground=2", "ground = 2,digit = 7", "30"):
        condition = made.condition(prompt)
        assert (int(condition["digit"]), int(condition["ground"])) == (7, 2)
    for prompt in ("digit=7", "digit=7, ground=4", "digit=7, sky=1", "40"):
        with pytest.raises(ValueError, match=r"digit|ground"):
            made.condition(prompt)


def test_an_unconditional_generator_takes_an_empty_prompt(tmp_path):
    made = Generator("free", export(tmp_path / "free", num_classes=0), How(2))
    assert not made.condition("")
    with pytest.raises(ValueError, match="empty"):
        made.condition("3")


def test_points_are_not_served(tmp_path):
    folder = export_folder(GenerativeModel.student(Denoiser(MLP(width=8, depth=2), EDM(0.5)), 2.0), tmp_path / "points")
    with pytest.raises(CheckpointError, match="pictures"):
        Generator("points", folder, How(2))


@pytest.mark.parametrize("name", checkpoints())
def test_shipped_folders_hold_neither_pickles_nor_strange_code(name):
    check_safe(checkpoint(name))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("weights.bin", ""),
        ("unet/model.pt", ""),
        ("modeling.py", "raise SystemExit"),
        ("model/other.py", ""),
        ("text_encoder/config.json", '{"auto_map": {"AutoModel": "modeling.Model"}}'),
        ("config.json", '{"trust_remote_code": true}'),
    ],
)
def test_folders_with_pickles_or_code_are_refused(folder, tmp_path, file, content):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / file).parent.mkdir(exist_ok=True)
    (copy / file).write_text(content)
    with pytest.raises(CheckpointError, match="expected configurations and safetensors"):
        Shelf([str(copy)], How(2))


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (b"a\nb", "one name for each of 10"),
        (b"\n".join([b"same"] * 10), "one name for each of 10"),
        (b"\n".join(b"0 1 10 2 3 4 5 6 7 8".split()), "number"),  # 2 would be the class 10
        (b"\xff\n" * 10, "UTF-8"),
    ],
)
def test_class_names_are_one_for_each_class(folder, tmp_path, names, word):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "classes.txt").write_bytes(names)
    with pytest.raises(CheckpointError, match=word):
        Generator("copy", copy, How(2))


def test_folders_behind_links_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "elsewhere").mkdir()
    (copy / "unet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="link"):
        check_safe(copy)


def test_what_was_replaced_is_gone_before_the_next_is_loaded(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shelf = Shelf([str(copy)], How(2))
    first = weakref.ref(shelf.get(None).model.denoiser)
    gc.disable()
    try:
        for card in ("one", "two"):
            (copy / "README.md").write_text(card)
            shelf.look()
            shelf.look()
    finally:
        gc.enable()
    assert (shelf.reloads, first()) == (2, None)


def test_generators_have_names(folder, tmp_path):
    shelf = Shelf([str(folder), f"other={folder}"], How(2))
    assert shelf.names() == ["tiny", "other"]
    assert shelf.get("other").name == "other"
    for wrong in (None, "none", str(folder)):
        with pytest.raises(ValueError, match="model is one of tiny, other"):
            shelf.get(wrong)
    for given in ([], [str(folder), str(folder)]):
        with pytest.raises(ValueError, match="name of its own"):
            Shelf(given, How(2))


def test_a_generator_made_anew_replaces_the_old_one_and_a_broken_one_does_not(tmp_path):
    folder = export(tmp_path / "tiny")
    shelf = Shelf([str(folder)], How(SIZE))
    old = shelf.get("tiny")
    shelf.look()
    assert shelf.get("tiny") is old  # nothing has changed
    export(folder, seed=1)
    shelf.look()
    assert shelf.get("tiny") is old  # it may still be written
    shelf.look()
    new = shelf.get("tiny")
    noise, condition = torch.ones(SIZE, 1, 8, 8), torch.zeros(SIZE, dtype=torch.int64)
    made = [each.model.sample(noise, condition) for each in (old, new)]
    assert not torch.equal(*made)
    weights = next(folder.rglob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    shelf.look()
    shelf.look()
    assert shelf.get("tiny") is new
    assert "tiny" in shelf.failures["tiny"]
    weights.write_bytes(whole)
    shelf.look()
    shelf.look()
    assert (shelf.failures, shelf.reloads) == ({}, 2)
    os.rename(folder, tmp_path / "away")
    shelf.look()
    shelf.look()
    assert torch.equal(shelf.get("tiny").model.sample(noise, condition), made[1])
    assert shelf.failures.keys() == {"tiny"}


def test_bf16_by_choice_gives_other_bits_which_are_the_same_each_time(folder):
    plain, first, second = (Generator("tiny", folder, How(SIZE, bf16=bf16)) for bf16 in (False, True, True))
    noise = torch.randn(SIZE, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made = [each.make(noise, each.model.condition(torch.arange(SIZE), SIZE), 3) for each in (plain, first, second)]
    assert torch.equal(made[1], made[2])
    assert not torch.equal(made[0], made[1])
    torch.testing.assert_close(made[0], made[1], rtol=0.1, atol=0.1)


def test_names_are_said_to_who_asks(generator):
    assert all(name in generator.asks for name in NAMES[:4])


def test_what_the_collector_leaves_out_is_freed_once_it_was_replaced():
    class Cycle:
        def __init__(self):
            self.me = self

    tidy()
    kept = Cycle()
    seen = weakref.ref(kept)
    tidy()
    del kept
    gc.collect()
    assert seen() is not None  # not looked at
    tidy()
    assert seen() is None
