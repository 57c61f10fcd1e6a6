"""Fifty turns of every kind, as fingerprints of all weights: two versions of the code that give the same train alike.

    python tools/bits_of_turns.py > after.txt
    git stash; python tools/bits_of_turns.py > before.txt; diff before.txt after.txt

Every objective in fused and in alternating turns, a teacher, and the digits' UNet; seed 0, one
thread, on the CPU. The bits depend on the processor: compare on one machine.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

import torch

from fdistill.core.fingerprints import fingerprint
from fdistill.data import Digits
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet
from fdistill.theory.preconditioning import EDM

TURNS = {"fused": {"turn": "fused"}, "alternating": {"turn": "alternating"}}


def unet() -> SmallUNet:
    torch.manual_seed(0)
    return SmallUNet(8, 1, (8, 8), num_classes=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=50)
    options = parser.parse_args()
    tests = Path(__file__).parents[1] / "tests"  # which have a table of all objectives
    sys.path[:0] = [str(tests), str(tests / "training")]
    from objective_runs import OBJECTIVES, learning_by
    from tiny_runs import distillation, fit, teacher_training

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    runs = {
        f"{name}, {turn}": (lambda build=build, changes=changes: learning_by(build(), **changes), None)
        for turn, changes in TURNS.items()
        for name, build in OBJECTIVES.items()
    }
    runs["teacher"] = (teacher_training, None)
    runs["teacher of digits"] = (lambda: teacher_training(unet(), sigma_data=0.5), Digits(batch_size=16))
    fused = {"turn": "fused", "adversarial_weight": 0.3}
    runs["students of digits"] = (lambda: distillation(Denoiser(unet(), EDM(0.5)), **fused), Digits(batch_size=16))
    for name, (build, data) in runs.items():
        try:
            torch.manual_seed(0)
            module = build()
            fit(module, options.turns, data)
            print(name, fingerprint(name, module.state_dict()), flush=True)
        except ValueError as error:  # an objective without that kind of turn says so
            print(name, "refused:", str(error)[:60], flush=True)


if __name__ == "__main__":
    main()
