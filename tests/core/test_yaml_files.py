"""Every command reads the same YAML as the same values, and says in which line it cannot."""

import math

import pytest
from cli_runs import fdistill, one_error_line, succeeds
from jsonargparse import ArgumentParser
from safetensors.torch import save_file

from fdistill.cli.commands.yaml_options import read_options_as_yaml_files
from fdistill.cli.commands.yaml_section import data_of_file
from fdistill.core.yaml_files import parse_yaml, read_yaml, yaml_of
from fdistill.io.importing.configured import _read_yaml
from fdistill.io.load import load_model
from fdistill.models.networks import SmallUNet

VALUES = {
    "1e-3": 1e-3,
    "2E+3": 2000.0,
    "5e-1": 0.5,
    ".5": 0.5,
    "-1.": -1.0,
    "1_000": 1000,
    "0x1F": 31,
    "0": 0,
    "-.inf": -math.inf,
    "true": True,
    "null": None,
    "1:30": "1:30",
    "2020-01-01": "2020-01-01",
    "'yes'": "yes",
    "'010'": "010",
    "1e": "1e",
}


@pytest.mark.parametrize("text", VALUES)
def test_values_mean_the_same_to_all_readers(text, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(f"a: {text}")
    read_options_as_yaml_files()
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_argument("--config", action="config")
    parser.add_argument("--a", type=str if isinstance(VALUES[text], str) else object)
    for found in (read_yaml(file)["a"], parser.parse_args([f"--config={file}"]).a, _read_yaml(file)["a"]):
        assert (found, type(found)) == (VALUES[text], type(VALUES[text]))


BROKEN = {
    "yes": (b"a: 1\nb: yes\n", 2),
    "off": (b"b: off\n", 1),
    "a number in base eight": (b"b: 010\n", 1),
    "a key twice": (b"a: 1\nb:\n  c: 1\n  c: 2\n", 4),
    "a tab": (b"a:\n\tb: 1\n", 2),
    "two documents": (b"a: 1\n---\nb: 2\n", 2),
    "a bracket that stays open": (b"a: [1, 2\n", 2),
    "Latin-1": (b"a: 1\n# caf\xe9\nb: 2\n", 2),
    "UTF-16": ("a: 1".encode("utf-16"), 1),
    "an object": (b"a: !!python/object:os.system {}\n", 1),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_broken_or_ambiguous_is_refused_by_its_line(fault, tmp_path):
    content, line = BROKEN[fault]
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    for read in (read_yaml, _read_yaml, data_of_file):
        with pytest.raises(ValueError, match=f"a.yaml is no valid YAML, line {line}:") as error:
            read(file)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("fault", ["yes", "a key twice", "Latin-1", "two documents"])
def test_fit_says_the_same(fault, tmp_path):
    content, line = BROKEN[fault]
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    assert f"a.yaml is no valid YAML, line {line}:" in one_error_line(fdistill("fit", "--config", file))


@pytest.mark.parametrize("content", ["", "# nothing\n"])
def test_an_empty_file_is_refused(content, tmp_path):
    (tmp_path / "a.yaml").write_text(content)
    for read in (read_yaml, _read_yaml, data_of_file):
        with pytest.raises(ValueError, match="empty"):
            read(tmp_path / "a.yaml")
    assert "empty" in one_error_line(fdistill("fit", "--config", tmp_path / "a.yaml"))


def test_texts_that_look_like_something_else_are_written_so_that_all_readers_take_them_for_texts():
    given = {
        "a": ["yes", "010", "08", "1e-3", "1:30", "true", "", "null", "0x1F"],
        "b": [1e-5, 10, True, None, math.inf],
    }
    assert parse_yaml(yaml_of(given)) == given


def test_values_on_the_command_line_are_what_their_option_is():
    read_options_as_yaml_files()
    parser = ArgumentParser()
    parser.add_argument("--text", type=str)
    parser.add_argument("--number", type=float)
    parser.add_argument("--list", type=list[float])
    found = parser.parse_args(["--text=no", "--number=1e-3", "--list=[1e-3, 2]"])
    assert (found.text, found.number, found.list) == ("no", 1e-3, [1e-3, 2.0])


def test_numbers_with_an_exponent_import_as_fit_reads_them(tmp_path):
    save_file(SmallUNet(resolution=8, widths=[8, 16]).state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "a.yaml").write_text(
        "denoiser:\n  network: {class_path: SmallUNet, init_args: {resolution: 8, widths: [8, 16]}}\n"
        "  preconditioning: {class_path: EDM, init_args: {sigma_data: 5e-1}}\nsampling: {sigma_min: 2e-3}\n"
    )
    succeeds("import", tmp_path / "net.safetensors", tmp_path / "out", "--config", tmp_path / "a.yaml")
    teacher = load_model(tmp_path / "out")
    assert teacher.denoiser.preconditioning.sigma_data == 0.5
    assert float(teacher.sigmas[teacher.sigmas > 0].min()) == pytest.approx(2e-3)
