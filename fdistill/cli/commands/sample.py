"""`fdistill sample`: pictures (or numbers) from a checkpoint or an exported folder."""

import io
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from torch import Tensor

from fdistill.cli.commands.sampling import resampled
from fdistill.core.atomic_files import atomic_write
from fdistill.core.devices import usable_device
from fdistill.core.places import require_writable
from fdistill.io.load import load_model
from fdistill.io.stock_pipeline import PIPELINE, prompt_condition
from fdistill.models.condition import Condition
from fdistill.sampling import Sampler
from fdistill.sampling.draw import Labels, chosen_labels, draw
from fdistill.sampling.first_step import with_first_step_of
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import SamplingGrid
from fdistill.sampling.pictures import show, to_pixels


def sample(
    checkpoint: str,
    n: int = 64,
    seed: int = 0,
    out: str = "samples.png",
    labels: int | list[int] | dict[str, int | list[int]] | None = None,
    prompt: str | list[str] | None = None,
    device: str = "cpu",
    sampler: Sampler | None = None,
    steps: int | None = None,
    grid: SamplingGrid | None = None,
    guidance: float | None = None,
    guidance_interval: list[float] | None = None,
    guide: str | None = None,
    temperature: float | None = None,
    first_step: str | None = None,
    best_of: int | None = None,
    reward: str | dict[str, Any] | None = None,
    data: str | None = None,
) -> None:
    """Generate samples; a seed gives the same ones from the .ckpt, the exported folder and its diffusers pipeline.

    Args:
        checkpoint: a run's .ckpt file, or a folder written by fdistill export.
        n: how many samples.
        seed: seed of the noise, which is drawn on the CPU whatever the device.
        out: file to write: a .png picture of all samples in a grid, a .npz file of the arrays samples and labels, or a
            .zip file of one picture each in folders of their classes, which `ImageFolder` reads.
        labels: the class to draw, or several like '[0,1,2]', repeated up to n; all classes in turn where not given.
            Those of several sets of classes by name: '{"digit": 7, "ground": [0, 1]}'.
        prompt: of a text-to-image model, or several like '["a cat","a dog"]', repeated up to n.
        device: where to compute: cpu, cuda, cuda:1, mps.
        sampler: of a teacher, in place of its own: Heun, Euler, DDIM, GDDIM, PredictorCorrector, Renoising, Restart.
        steps: of a teacher, on EDM's grid between its own first and last noise levels.
        grid: of a teacher, any other noise levels: KarrasGrid, PathGrid, GivenGrid.
        guidance: scale of a teacher's guidance; 1 for none.
        guidance_interval: two noise levels, low and high, between which guidance acts.
        guide: a worse teacher of the same samples, for autoguidance.
        temperature: factor of a student's noise, 1 as it was trained; above 1 recall rises and precision falls.
        first_step: who makes the first step of a student of several: teacher for the one that it was distilled from, or
            the .ckpt or folder of it.
        best_of: candidates of each sample, of which the one of the largest reward is kept.
        reward: by which: a class of rewards, as Brightness, or
            '{"class_path": "TargetReward", "init_args": {"target": 0.5}}'.
        data: YAML file with a data section, for a reward that is fitted to it; the model's own where not given.
    """
    if (best_of is None) != (reward is None):
        raise ValueError("the best of N candidates is that of a reward: give --best_of and --reward, or neither")
    if n < 1:
        raise ValueError(f"n is a number of samples and positive: got {n}")
    path = _target(out)
    model = resampled(load_model(checkpoint), sampler, steps, grid, guidance, guidance_interval, guide, temperature)
    if first_step is not None:
        model = with_first_step_of(model, _teacher_of(model, first_step))
    model.sampling_on(usable_device(device))
    _check_prompts(model, prompt, n, labels)
    asked: Labels | Condition = labels
    if prompt is not None:
        asked = prompt_condition(model, [prompt] if isinstance(prompt, str) else prompt, n)
    wanted = chosen_labels(model, n, labels) if prompt is None else None
    if best_of is None or reward is None:
        samples, told = draw(model, n, seed, asked), ""
    else:
        texts = [prompt] if isinstance(prompt, str) else prompt
        samples, told = _kept(model, n, best_of, reward, seed, asked, texts, data)
    _write(path, model, samples, wanted)
    evaluations = f"{model.evaluations} network evaluation{'s' * (model.evaluations > 1)}"
    print(f"wrote {n} sample{'s' * (n > 1)} of {evaluations} each to {path}{told}")


def _check_prompts(model: GenerativeModel, prompt: str | list[str] | None, n: int, labels: Labels) -> None:
    """Raises ValueError for prompts that are none, too many, or beside labels."""
    if prompt is None:
        if PIPELINE in model.facts:
            raise ValueError("this model makes pictures of prompts: expected --prompt 'TEXT', got none")
        return
    if labels is not None:
        raise ValueError(f"a sample is of a prompt or of a class: got both, labels {labels}; leave one of them out")
    count = 1 if isinstance(prompt, str) else len(prompt)
    if not 1 <= count <= n:
        raise ValueError(f"each prompt is that of a sample: expected 1 to n = {n} prompts, got {count}")


def _kept(
    model: GenerativeModel,
    n: int,
    candidates: int,
    given: str | dict[str, Any],
    seed: int,
    asked: Labels | Condition,
    texts: list[str] | None,
    data: str | None,
) -> tuple[Tensor, str]:
    """The best candidates, and what is told of them."""
    from fdistill.cli.commands.yaml_section import data_of_file
    from fdistill.objectives.prompt_rewards import PromptReward
    from fdistill.training.best_of import best_of, named_reward  # seconds of imports that other samples do without

    real, by = None if data is None else data_of_file(data), named_reward(given)
    for part in by.parts().values():
        if texts is not None and isinstance(part, PromptReward):
            part.know(cast(Condition, asked), [texts[i % len(texts)] for i in range(n)])
    kept = best_of(model, n, candidates, by, seed, asked, data=real)
    means = (f"{name} {kept.rewards[name].mean():.4g} in place of {of.mean():.4g}" for name, of in kept.plain.items())
    return kept.samples, f", the best of {candidates} each: {', '.join(means)}; KL at most {kept.kl:.3g} nats"


def _target(out: str) -> Path:
    path = Path(out)
    if path.suffix not in (".png", ".npz", ".zip"):
        raise ValueError(f"samples are written as .png, .npz or .zip: got {out!r}; name the file like that")
    require_writable(path)
    return path


def _write(path: Path, model: GenerativeModel, samples: Tensor, labels: Tensor | None) -> None:
    if path.suffix == ".npz":
        atomic_write(path, _npz(samples, labels))
    elif path.suffix == ".zip":
        atomic_write(path, _zip(samples, labels))
    elif samples.ndim == 4:
        atomic_write(path, _png(samples))
    else:
        from fdistill.evaluation.report.grid import sample_grid_figure

        sample_grid_figure({f"{model.kind}, {model.evaluations} evaluations": samples}, path)


def _teacher_of(student: GenerativeModel, given: str) -> GenerativeModel:
    from fdistill.evaluation.evaluate import remembered_teacher  # seconds of imports that other samples do without

    path = remembered_teacher(student.facts) if given == "teacher" else given
    if path is None:
        raise ValueError("this student does not tell where its teacher lies: give --first_step the teacher's path")
    return load_model(path)


def _png(samples: Tensor) -> bytes:
    buffer = io.BytesIO()
    show(samples).save(buffer, format="PNG")
    return buffer.getvalue()


def _npz(samples: Tensor, labels: Tensor | None) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, samples=samples.numpy(), labels=np.zeros(0) if labels is None else labels.numpy())
    return buffer.getvalue()


def _zip(samples: Tensor, labels: Tensor | None) -> bytes:
    """An archive of PNG files, not compressed again; raises ValueError for samples that are no images."""
    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise ValueError(f"a .zip file holds images [n, 1 or 3, H, W]: got samples of shape {list(samples.shape)}")
    buffer, digits = io.BytesIO(), len(str(0 if labels is None else int(labels.max())))
    with zipfile.ZipFile(buffer, "w") as archive:
        for i, pixels in enumerate(to_pixels(samples)):
            picture = io.BytesIO()
            Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(picture, format="PNG")
            folder = "" if labels is None else f"{int(labels[i]):0{digits}}/"
            archive.writestr(f"{folder}{i:06}.png", picture.getvalue())
    return buffer.getvalue()
