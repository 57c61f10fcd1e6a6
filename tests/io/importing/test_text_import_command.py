"""`fdistill import` of a text-to-image pipeline, from the command line to the teacher's samples."""

import torch
from cli_runs import succeeds
from text_pipelines import built

from fdistill.io.load import load_model
from fdistill.io.stock_pipeline import StockPipeline


def test_a_pipeline_becomes_a_teacher(tmp_path):
    built("sd").save_pretrained(tmp_path / "sd")
    printed = succeeds("import", tmp_path / "sd", tmp_path / "teacher", "--resolution=16", "--num_steps=2")
    assert "2 network evaluations" in printed
    assert str(tmp_path / "sd") in printed
    teacher = load_model(tmp_path / "teacher")
    condition = StockPipeline(tmp_path / "sd").ask(["a red seven"], (16, 16), null=False).condition
    assert teacher.decode(teacher.sample(teacher.noise(1, 0), condition)).shape == (1, 3, 16, 16)
    assert torch.isfinite(teacher.sample(teacher.noise(1, 0), condition)).all()
