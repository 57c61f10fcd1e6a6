"""`fdistill encode-prompts`: what it says, that it goes on, and that mistakes are one line and leave nothing."""

import pytest
import torch
from tiny_encoders import pipelines

from fdistill.cli.main import main
from fdistill.data import Prompts

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "sd15"
    torch.manual_seed(0)
    pipelines()["sd15"]().save_pretrained(folder)
    return folder


def run(prompts, pipeline, out, *options):
    return main(["encode-prompts", str(prompts), "--pipeline", str(pipeline), "--out", str(out), *options])


def test_prompts_are_encoded_once_and_train_with_their_own_pipeline_alone(tmp_path, pipeline, capsys):
    (tmp_path / "p.txt").write_text("one\na much too long prompt of many letters\n")
    assert run(tmp_path / "p.txt", pipeline, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "2 prompts" in said
    assert "bytes each" in said
    assert "1 of 2 prompts are cut" in said
    assert run(tmp_path / "p.txt", pipeline, tmp_path / "out") == 0
    assert "nothing was computed" in capsys.readouterr().out

    data = Prompts(str(tmp_path / "out"), [4, 2, 2], batch_size=2, pipeline=str(pipeline))
    assert next(iter(data.train_dataloader())).condition["encoder_hidden_states"].shape == (2, 16, 16)
    torch.manual_seed(1)
    pipelines()["sd15"]().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="own text encoders"):
        Prompts(str(tmp_path / "out"), [4, 2, 2], pipeline=str(tmp_path / "other")).load_splits()


def test_mistakes_are_one_line_and_leave_nothing(tmp_path, pipeline, capsys):
    (tmp_path / "p.txt").write_text("one\n\n")

    def refused(word, *arguments):
        assert main(["encode-prompts", *map(str, arguments), "--out", str(tmp_path / "out")]) != 0
        said = capsys.readouterr().err.strip().splitlines()
        assert word in said[-1]
        assert sum(line.startswith("fdistill: error") for line in said) == 1
        assert not (tmp_path / "out").exists()

    refused("--pipeline", tmp_path / "p.txt")
    refused("line 2", tmp_path / "p.txt", "--pipeline", pipeline)
    refused("model_index", tmp_path / "p.txt", "--pipeline", tmp_path, "--skip_empty")
    (tmp_path / "p.csv").write_text("prompt\none\n")
    refused("convert it", tmp_path / "p.csv", "--pipeline", pipeline)
    refused("has no columns", tmp_path / "p.txt", "--pipeline", pipeline, "--column", "prompt")
    refused("nothing.txt", tmp_path / "nothing.txt", "--pipeline", pipeline)
