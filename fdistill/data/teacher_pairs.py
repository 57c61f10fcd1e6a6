"""Teacher pairs: latents with the samples that a teacher's ODE makes of them, in one safetensors file."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from fdistill.core.atomic_files import atomic_write
from fdistill.io.checkpoints import model_record, model_weights
from fdistill.models.condition import LABELS, Condition, Conditioned, Takes, declared, takes_classes
from fdistill.models.guidance import Guidance
from fdistill.sampling.generator import GenerativeModel

_NAMED = "condition."  # before the name of a tensor of a condition

Facts = dict[str, str]
"""How pairs were made: n, seed, evaluations, guidance, teacher (its path) and model (a hash of its weights)."""


class TeacherPairs:
    """Standard normal latents z, and the teacher's samples of the same z and condition.

    The teacher's ODE starts at sigmas[0] z; a one-step student makes G(z) = D(sigma_init z, sigma_init) of that z.

    Attributes:
        latents: [N, *sample_shape] float32.
        samples: [N, *sample_shape] float32.
        condition: of each pair; empty for an unconditional teacher.
        facts: how they were made; empty where a file does not tell.
    """

    def __init__(
        self, latents: Tensor, samples: Tensor, condition: Conditioned = None, facts: Facts | None = None
    ) -> None:
        """Raises:
        ValueError: for tensors that do not belong together, or numbers that are not finite.
        """
        if latents.ndim < 2 or len(latents) == 0 or latents.shape != samples.shape:
            raise ValueError(
                "pairs are latents and samples of one shape [N, ...] with N >= 1: "
                f"got {list(latents.shape)} and {list(samples.shape)}"
            )
        if not (latents.is_floating_point() and samples.is_floating_point()):
            raise ValueError(f"latents and samples are float32: got {latents.dtype} and {samples.dtype}")
        broken = int((~(latents.isfinite() & samples.isfinite())).flatten(1).any(dim=1).sum())
        if broken:
            raise ValueError(f"pairs hold finite numbers: got a NaN or an infinity in {broken} of {len(latents)}")
        self.condition = Condition.of(condition, takes_classes(1))
        _check_condition(self.condition, len(latents))
        self.latents, self.samples = latents.float(), samples.float()
        self.facts = dict(facts or {})

    @classmethod
    def make(
        cls,
        model: GenerativeModel,
        n: int,
        seed: int,
        source: str = "",
        batch_size: int = 500,
        condition: Condition | None = None,
    ) -> "TeacherPairs":
        """Run a teacher's own sampler, on its device, with a progress bar; the pairs are on the CPU.

        Args:
            model: a teacher.
            n: number of pairs, >= 1.
            seed: of the latents: those of `fdistill sample` for the same seed.
            source: where the teacher is from, for the facts.
            batch_size: latents at once, >= 1.
            condition: of the pairs, in turn; None for the classes.

        Raises:
            ValueError: for a student, a number out of range, or a teacher that makes numbers which are not finite.
        """
        facts = facts_of(model, n, seed, source)
        if batch_size < 1:
            raise ValueError(f"batch_size is a number of latents at once: expected >= 1, got {batch_size}")
        latents, parts = model.noise(n, seed), []
        given = model.labels(n) if condition is None else condition.rows(torch.arange(n) % (condition.length or 1))
        condition = model.condition(given, n)
        with tqdm(total=n, desc="pairs", unit="sample", leave=False) as bar:
            for part in torch.arange(n).split(batch_size):
                parts.append(model.sample(latents[part], condition.rows(part), batch_size))
                bar.update(len(part))
        return cls(latents, torch.cat(parts), condition, facts)

    @classmethod
    def load(cls, path: Path | str) -> "TeacherPairs":
        """Pairs of `save`, or of any safetensors file with latents, samples and, if conditional, labels.

        Tensors of another condition than class labels are named "condition.NAME".

        Raises:
            ValueError: with one line, if the file is missing or damaged or holds something else.
        """
        with _opened(Path(path)) as file:
            names = set(file.keys())
            others = names - {"latents", "samples"}
            if len(others) > len(names) - 2 or any(name != LABELS and not name.startswith(_NAMED) for name in others):
                raise ValueError(f"{path} holds no pairs: expected latents, samples, labels, got {sorted(names)[:6]}")
            found, facts = {name: file.get_tensor(name) for name in names}, file.metadata()
        condition = {name.removeprefix(_NAMED): found[name] for name in sorted(others)}
        try:
            return cls(found["latents"], found["samples"], Condition(condition), facts)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; make it again with fdistill pairs TEACHER {path} --overwrite") from None

    def save(self, path: Path | str) -> Path:
        """Write one safetensors file, whole or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        named = {name if name == LABELS else _NAMED + name: value for name, value in self.condition.items()}
        tensors = {"latents": self.latents, "samples": self.samples, **named}
        held = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
        return atomic_write(path, save(held, self.facts))

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str) -> "TeacherPairs":
        """The same pairs on a device."""
        moved = (self.latents.to(device), self.samples.to(device), self.condition.to(device))
        return TeacherPairs(*moved, self.facts)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Condition]:
        """n pairs, uniformly with replacement: latents, samples [n, *sample_shape] and their conditions.

        They are on the generator's device; that costs no transfer where the pairs are there too (see `to`).
        """
        drawn = torch.randint(len(self), (n,), generator=generator, device=generator.device).to(self.latents.device)
        device = generator.device
        return self.latents[drawn].to(device), self.samples[drawn].to(device), self.condition.rows(drawn).to(device)

    def check_fits(self, sample_shape: tuple[int, ...], takes: Takes, guidance: float | Guidance | None = None) -> None:
        """Raises ValueError where a student of this shape, that takes such a condition, cannot learn from the pairs.

        So it does where they are known to be made at another guidance than the student's run asks of its teacher.
        """
        if tuple(self.latents.shape[1:]) != tuple(sample_shape):
            raise ValueError(
                f"the pairs are of samples {tuple(self.latents.shape[1:])}, the student's of {tuple(sample_shape)}: "
                "make pairs with its own teacher (fdistill pairs)"
            )
        made_at = self.facts.get("guidance")
        wanted = None if guidance is None else str(Guidance.of(guidance))
        if None not in (wanted, made_at) and made_at != wanted:
            raise ValueError(
                f"pairs and matching want the same teacher: expected pairs at guidance {wanted}, got {made_at}; "
                "export the teacher with --guidance and make its pairs, or set guidance"
            )
        counts = {name: entry.classes for name, entry in takes.items() if entry.classes and name in self.condition}
        largest = {name: int(self.condition[name].max()) for name in counts}
        if takes.keys() != self.condition.keys() or any(largest[name] >= counts[name] for name in counts):
            got = ", ".join(f"{name} up to {value}" for name, value in largest.items()) or str(self.condition)
            raise ValueError(
                f"the pairs are of the student's condition: expected {declared(takes)}, got {got}; "
                "make pairs with its own teacher (fdistill pairs)"
            )


def facts_of(model: GenerativeModel, n: int, seed: int, source: str) -> Facts:
    """How `TeacherPairs.make` would make these pairs; pairs of equal facts, apart from `teacher`, are equal.

    Raises:
        ValueError: for a student, or n out of range.
    """
    if model.sampler is None:
        raise ValueError(f"pairs are made by a teacher's ODE: {source or 'this'} is a {model.kind}")
    if model.sampler.is_stochastic:
        raise ValueError(
            "pairs are made by a teacher's ODE, which gives each latent one sample: the sampler of "
            f"{source or 'this'} draws noise ({type(model.sampler).__name__}); export it with --sampler Heun"
        )
    if n < 1:
        raise ValueError(f"n is a number of pairs: expected >= 1, got {n}")
    facts = {"n": n, "seed": seed, "evaluations": model.evaluations, "guidance": Guidance.of(model.guidance)}
    return {**{name: str(value) for name, value in facts.items()}, "teacher": source, "model": _fingerprint(model)}


def read_facts(path: Path | str) -> Facts:
    """How the pairs of a file were made, read without the pairs; empty where the file does not tell.

    Raises:
        ValueError: with one line, if the file is missing or no safetensors file.
    """
    with _opened(Path(path)) as file:
        return file.metadata() or {}


def _opened(path: Path) -> safe_open:
    if not path.is_file():
        raise ValueError(f"there are no pairs at {path}: make them with fdistill pairs TEACHER {path}")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: make it again with fdistill pairs") from error


def _check_condition(condition: Condition, n: int) -> None:
    labels = condition.get(LABELS)
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != (n,)):
        raise ValueError(f"labels are int64 [{n}], one for each pair: got {labels.dtype} {list(labels.shape)}")
    if labels is not None and labels.min() < 0:
        raise ValueError(f"labels are classes >= 0: got {int(labels.min())}")
    if condition.length not in (None, n):
        raise ValueError(f"each of the {n} pairs has its condition: got {condition}")


def _fingerprint(model: GenerativeModel) -> str:
    """A hash of the weights and of all that decides what they make of a latent."""
    digest = hashlib.sha256(json.dumps({**model_record(model), "facts": None}, sort_keys=True).encode())
    for name, tensor in sorted(model_weights(model).items()):
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
