"""What a command does not need is not imported: libraries that take seconds each."""

from cli_runs import python_process

HEAVY = {"diffusers", "lightning", "matplotlib", "sklearn", "scipy", "torchmetrics", "transformers", "wandb"}
CODE = """
import sys
from fdistill.cli.main import main
assert main(["sample", "--checkpoint", "fashion-student", "--n", "1", "--out", {picture!r}]) == 0
assert main(["export", "fashion-student", {folder!r}]) == 0
print(*{{name.partition(".")[0] for name in sys.modules}})
"""


def test_a_network_of_our_own_is_sampled_and_exported_without_heavy_libraries(tmp_path):
    outcome = python_process(CODE.format(picture=str(tmp_path / "one.png"), folder=str(tmp_path / "exported")))
    assert HEAVY & set(outcome.out.splitlines()[-1].split()) == set()
