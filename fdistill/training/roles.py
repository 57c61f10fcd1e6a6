"""Teacher, student and fake score: three copies of a network, or adapters on one frozen base."""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from fdistill.core.spec import Described
from fdistill.core.weight_files import CheckpointError
from fdistill.io.checkpoints import RECORD
from fdistill.io.importing.lora import with_lora_added, with_lora_beside
from fdistill.models.adapters import Named, adapter_layers, adapter_state, with_adapters
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import train_without_dropout
from fdistill.training.continuation import Continuation

Learns = Literal["adapter", "full"]
"""What of a network learns: low-rank factors on the teacher's weights, or all of a copy."""


class Roles(Described):
    """What student and fake score are made of."""

    @abstractmethod
    def start(self, name: str, given: Denoiser | Path | None, teacher: Denoiser, base: Denoiser) -> Denoiser:
        """The network of a role before the first turn, of which only what learns requires a gradient.

        Args:
            name: "student" or "fake_score".
            given: the network to start from, or a LoRA file that changes the teacher to it; None for the teacher.
            teacher: with the weights that it was loaded with.
            base: the run's own teacher, frozen, in the type in which it is held.

        Raises:
            ValueError: where the role cannot start from it.
        """

    def record(self, name: str) -> dict[str, Any] | None:
        """How the adapters of a role are built, as plain values; None where it has none."""
        return None


class FullCopies(Roles):
    """Each role is a network of its own, and all of it learns."""

    def start(self, name: str, given: Denoiser | Path | None, teacher: Denoiser, base: Denoiser) -> Denoiser:
        if isinstance(given, Path):
            copied = with_lora_added(teacher, given)
        else:
            copied = copy.deepcopy(teacher if given is None else given)
        copied.requires_grad_(True)
        train_without_dropout(copied)
        if not any(True for _ in copied.parameters()):
            raise ValueError(
                f"the teacher has no parameters to start the {name} from: give {name} as a denoiser of its own"
            )
        return copied


class SharedBase(Roles):
    """Student and fake score are adapters on the weights of the teacher, which lie in memory once.

    A teacher that is tuned has the role of the student alone, and its base is the reference.

    Each network stays a tree of modules of its own (`fdistill.models.adapters`): graphs of all roles live together, and
    gradient checkpointing, compilation and optimisers need to know nothing. A checkpoint holds the adapters, where the
    teacher was loaded from, and the fingerprint of its weights. The student's moving average is one of its factors A
    and B, each by itself, which is not the average of the products B A.

    An adapter may start as a LoRA file (`student: FILE.safetensors`), whose rank, alpha and layers are then its own.

    `teacher_dtype` of the distillation is the type of the base: adapters are float32 on it. A sharded run keeps each
    network in parts of its own, so that the base lies in parts once for each role.
    """

    def __init__(
        self,
        rank: int = 64,
        alpha: float | None = None,
        targets: Named | Sequence[str] = "attention",
        student: Learns = "adapter",
        fake_score: Learns = "adapter",
    ) -> None:
        """Args:
        rank: of the adapters, >= 1.
        alpha: adapters are scaled by alpha / rank; None for rank, which programs that lose it take for granted.
        targets: layers that get adapters: "attention", "dmd2" (those of its LoRA of SDXL), "all", or endings of the
            names of layers.
        student: whether adapters of the student learn, or a whole copy of the teacher in float32.
        fake_score: the same of the fake score.

        Raises:
            ValueError: for an unknown choice, or where nothing is shared.
        """
        self.kinds = {"student": student, "fake_score": fake_score}
        for name, kind in self.kinds.items():
            if kind not in get_args(Learns):
                raise ValueError(f"roles.{name} is one of {', '.join(get_args(Learns))}: got {kind!r}")
        if set(self.kinds.values()) == {"full"}:
            raise ValueError("SharedBase has an adapter in one role at least: got two full networks; use FullCopies")
        self.adapters: dict[str, Any] = {
            "rank": rank,
            "alpha": alpha,
            "targets": targets if isinstance(targets, str) else [*targets],
        }

        self.read: dict[str, dict[str, Any]] = {}

    def start(self, name: str, given: Denoiser | Path | None, teacher: Denoiser, base: Denoiser) -> Denoiser:
        if self.kinds[name] == "full":
            return FullCopies().start(name, given, teacher, base)
        if isinstance(given, Denoiser):
            raise ValueError(
                f"an adapter begins as the teacher that it stands on, or as a LoRA file of it: expected no {name} but "
                f"these beside SharedBase, got one; leave {name} out, or set roles.{name} to full"
            )
        if given is None:
            adapted = with_adapters(base, **self.adapters)  # of one seed: a fake score may imitate the student's
        else:
            adapted, self.read[name] = with_lora_beside(base, given)
        train_without_dropout(adapted)
        return adapted

    def record(self, name: str) -> dict[str, Any] | None:
        return self.read.get(name, self.adapters) if self.kinds[name] == "adapter" else None


def shared_names(module: nn.Module) -> set[str]:
    """Names in the state of a module of what its networks with adapters share with their base."""
    found = set()
    for prefix, network in module.named_modules():
        if isinstance(network, Denoiser) and adapter_layers(network):
            own = adapter_state(network)
            found |= {f"{prefix}.{name}" for name in network.state_dict() if name not in own}
    return found


def write_roles(module: Any, base: str, checkpoint: dict[str, Any]) -> None:
    """Add the roles of a run to its checkpoint, and where the base of its generator's adapters is found.

    Args:
        module: with `roles` and `teacher_source`.
        base: its name of the frozen network that adapters stand on.
        checkpoint: with the record of the model.
    """
    checkpoint["roles"] = module.roles.spec()
    adapters = module.roles.record("student")
    if adapters is not None:
        checkpoint[RECORD]["adapters"] = adapters | {"base": _base_record(module, base)}


def _base_record(module: Any, base: str) -> dict[str, Any]:
    """Where the base is found, how it is held, and the fingerprint of its weights when the run began."""
    networks = next(found for found in module.trainer.callbacks if isinstance(found, Continuation)).networks
    source = module.teacher_source
    if isinstance(source, str) and Path(source).exists():
        source = str(Path(source).resolve())
    held = str(getattr(module, base).held).removeprefix("torch.")
    return {"source": source, "dtype": held, "fingerprint": networks.get(base)}


def check_same_roles(before: dict[str, Any] | None, roles: Roles) -> None:
    """Raises CheckpointError where a checkpoint is of other roles; one without them is of full copies."""
    expected, got = FullCopies().spec() if before is None else before, roles.spec()
    if expected != got:
        said = [f"{how['class_path'].rpartition('.')[2]} {how['init_args'] or ''}".strip() for how in (expected, got)]
        raise CheckpointError(
            f"a run continues with the roles that it began with: expected {said[0]}, got {said[1]}; give model.roles "
            "as it was, or begin a new run"
        )
