"""What teacher training and distillation share: a guarded step, counter-based noise, self-describing checkpoints."""

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import lightning.pytorch as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from fdistill.core.distributed import gather_objects, on_rank_0, patient, whole, world_size
from fdistill.core.random import fold_seed, generator_for
from fdistill.core.weight_files import CheckpointError
from fdistill.data import GenerativeDataModule
from fdistill.io.checkpoints import RECORD, model_record
from fdistill.models.denoiser import Denoiser
from fdistill.sampling.generator import GenerativeModel
from fdistill.training.averaging.ema import EMA
from fdistill.training.checkpoint_io import SafeCheckpointIO
from fdistill.training.continuation import Continuation
from fdistill.training.data_checks import check_divides, check_fits
from fdistill.training.guard import Check, Guard, TurnValues
from fdistill.training.loggers import JsonlLogger, log_numbers
from fdistill.training.parallel import ReplicatedStrategy
from fdistill.training.roles import shared_names


class MicroBatch(NamedTuple):
    """Rows of a turn's batch, and the streams of their noise."""

    rows: slice
    whole: torch.Generator  # the turn's: numbers are drawn for the whole batch, and `rows` of them taken
    own: torch.Generator  # for what is drawn for these rows alone; the turn's where they are the whole batch


class GenerativeModule(L.LightningModule):
    """Base of `TeacherModule` and `DistillationModule`.

    Each batch takes exactly one counted optimiser step, so ``global_step`` is the number of turns, and the noise of a
    turn is a function of (seed, turn, rank). The strategy averages gradients over the ranks before they are clipped and
    checked: one device, `ReplicatedStrategy` or `ShardedStrategy`, and none that expects to wrap the module.
    """

    ema: EMA
    """The average of the network that generates."""

    frozen_prefixes: tuple[str, ...] = ()
    """Names of sub-modules whose weights are not saved, because they are loaded from elsewhere."""

    checks_later: tuple[str, ...] = ("cuda",)
    """Devices on which the host does not wait in every turn to know that it is finite."""

    def __init__(self, seed: int, gradient_clip: float, accumulate: int = 1, skip_nonfinite: int = 0) -> None:
        super().__init__()
        if not gradient_clip > 0:
            raise ValueError(f"gradient_clip is the largest gradient norm of a step and positive: got {gradient_clip}")
        if accumulate < 1:
            raise ValueError(
                f"accumulate is a number of micro-batches in a turn: expected at least 1, got {accumulate}"
            )
        self.seed, self.gradient_clip, self.accumulate = seed, gradient_clip, accumulate
        self.guard = Guard(skip_nonfinite)
        self.automatic_optimization = False
        self.strict_loading = False  # the teacher is not in the checkpoint; on_load_checkpoint checks all else
        self._random_states: list[dict[str, Tensor]] | None = None
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self._last_log: tuple[int, float] | None = None

    def generative_model(self) -> GenerativeModel:
        """The model that this run produces: EMA weights, sampler, and the facts its card tells."""
        raise NotImplementedError

    def updates_after(self, turns: int) -> int:
        """How often the generator has been updated when so many turns are done."""
        return turns

    @property
    def updates(self) -> int:
        """Updates of the generator so far."""
        return self.updates_after(self.global_step)

    def run_facts(self) -> dict[str, Any]:
        """Facts of the run for the model card: seed, turns, data; precision where it is not float32."""
        data = getattr(self._trainer, "datamodule", None)
        precision = getattr(self._trainer, "precision", "32-true")
        return {
            **({} if precision == "32-true" else {"precision": precision}),
            "seed": self.seed,
            "turns": self.global_step,
            "train_seconds": round(self._seconds_before + time.perf_counter() - self._started, 1),
            "batch_size": None if data is None else data.batch_size * world_size(),
            "data": data.spec() if isinstance(data, GenerativeDataModule) else None,
        }

    def setup(self, stage: str) -> None:
        """Check what only the run can tell: data against networks, precision; read and write checkpoints safely."""
        strategy, precision = self.trainer.strategy, self.trainer.precision
        if type(strategy.checkpoint_io) is TorchCheckpointIO:  # one that the user chose stays
            strategy.checkpoint_io = SafeCheckpointIO()
        if not isinstance(strategy, SingleDeviceStrategy | ReplicatedStrategy):
            raise ValueError(
                "turns in which networks alternate, and gradients that are averaged here, break other strategies: "
                f"use --trainer.strategy replicated or sharded, got {type(strategy).__name__}"
            )
        if precision not in ("32-true", "bf16-mixed"):
            raise ValueError(
                "weights and their average are float32, and fp16 loss scaling does not survive two networks in a turn: "
                f"use precision 32-true or bf16-mixed, got {precision}"
            )
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, GenerativeDataModule):
            check_divides(self.accumulate, data.batch_size)
            for name, denoiser in self.denoisers().items():
                check_fits(name, denoiser, data)

    def configure_callbacks(self) -> list[L.Callback]:
        """What compares a checkpoint with the run that continues from it."""
        return [Continuation()]

    def denoisers(self) -> dict[str, Denoiser]:
        """The networks by role."""
        return {name: child for name, child in self.named_children() if isinstance(child, Denoiser)}

    def noise_source(self, *counters: int) -> torch.Generator:
        """The generator of this turn on this rank, or of a part of it that counters name."""
        return generator_for(self.seed, self.global_step, self.global_rank, *counters, device=self.device)

    def micro_batches(self, batch_size: int) -> Iterator[MicroBatch]:
        """The micro-batches of this turn: `accumulate` of them, of equal size.

        Raises:
            ValueError: where the batch has no such parts.
        """
        check_divides(self.accumulate, batch_size)
        size = batch_size // self.accumulate
        for index in range(self.accumulate):
            whole = self.noise_source()
            own = whole if self.accumulate == 1 else self.noise_source(index)
            yield MicroBatch(slice(index * size, (index + 1) * size), whole, own)

    def backward_share(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's loss to that of the turn, which is the mean over its micro-batches."""
        self.manual_backward(loss / self.accumulate)

    def normal(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal float32 noise on this device."""
        return torch.randn(shape, generator=generator, device=self.device)

    def guarded_step(
        self,
        losses: dict[str, Tensor],
        networks: dict[str, nn.Module],
        optimizers: list[LightningOptimizer],
        samples: TurnValues | None = None,
        counted: bool = True,
    ) -> dict[str, Tensor] | None:
        """Average, clip and check the gradients of all networks that move this turn, then step their optimisers.

        On CUDA, fused optimisers read on the device whether they may move, and the host reads it one turn later, or
        before a checkpoint is written: it never waits. Everything else waits for the check.

        Args:
            losses: the scalar terms of the turn, for the check.
            networks: what moves, by name; each is clipped on its own.
            optimizers: the first one's step is the turn's counted step, if `counted`; the others are below the counter.
            samples: of the turn, for the noise levels in the message.

        Returns:
            Gradient norms before clipping, by name of the network; None where the turn is skipped.

        Raises:
            NonFiniteError: on every rank, before any optimiser moved, naming the terms.
        """
        self.guard.settle()
        if isinstance(self.trainer.strategy, ReplicatedStrategy):
            self.trainer.strategy.average_gradients(networks)
        norms = {}
        for name, network in networks.items():
            norm = whole(torch.nn.utils.clip_grad_norm_(network.parameters(), self.gradient_clip))
            norms[name] = norm.detach().to(self.device)
        terms = {**losses, **{f"gradient of {name}": norm for name, norm in norms.items()}}
        check, skipped = Check.of(self.global_step, terms, samples), False
        if self._checks_later(optimizers):
            flag = self.guard.look_later(check)
            for optimizer in optimizers:
                fused: Any = optimizer.optimizer
                fused.found_inf = flag  # what torch's GradScaler gives a fused optimiser
        elif skipped := self.guard.skips(check):
            log_numbers(self.loggers, {"guard/skipped_turns": self.guard.skipped}, self.global_step + 1)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)  # no optimiser moves a weight without gradient
        for index, optimizer in enumerate(optimizers):
            if counted and index == 0:
                optimizer.step()
            else:
                self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None, model=self)
            optimizer.zero_grad(set_to_none=True)
        return None if skipped else norms

    def _checks_later(self, optimizers: list[LightningOptimizer]) -> bool:
        """Whether nothing moves in a broken turn although the host does not know yet; no turn is skipped so."""
        if self.guard.allowed or self.device.type not in self.checks_later:
            return False
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        return all(group.get("fused") and group["params"][0].device == self.device for group in groups)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Remember what a turn may have to give back."""
        self.guard.remember(b for name, b in self.named_buffers() if not name.startswith(self.frozen_prefixes))

    def on_validation_start(self) -> None:
        """Gather what is sampled, and be patient: ranks may have different numbers of batches."""
        self._gathered = ExitStack()
        self._gathered.enter_context(patient())
        self._gathered.enter_context(self.generative_model().whole())

    def on_validation_end(self) -> None:
        self._gathered.close()

    def on_train_end(self) -> None:
        """Know that the last turn was finite."""
        self.guard.settle()

    def is_logging_turn(self, turn: int) -> bool:
        """Whether the values of this turn go to the loggers."""
        every = cast(Any, self.trainer).log_every_n_steps
        return every > 0 and turn % every == 0

    def write_log(self, values: dict[str, Tensor | float], turn: int) -> None:
        """Send scalars to every logger under the turn's number, and the losses to the progress bar."""
        detached = {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}
        numbers = {name: float(value) for name, value in detached.items()} | self._speed(turn)
        compression = getattr(self.trainer.strategy, "compression", None)
        numbers |= {} if compression is None else compression.log()
        log_numbers(self.loggers, numbers, turn)
        for name, value in numbers.items():
            if name.startswith("loss/"):
                # on the CPU: the progress bar reads it in other turns too, which then wait for no device
                self.log(name.removeprefix("loss/"), torch.tensor(value), prog_bar=True, logger=False)

    def _speed(self, turn: int) -> dict[str, float]:
        """Milliseconds a turn and images a second since the last log line; nothing on the first."""
        now, before = time.perf_counter(), self._last_log
        self._last_log = (turn, now)
        if before is None or turn == before[0]:
            return {}
        seconds = (now - before[1]) / (turn - before[0])
        data = getattr(self.trainer, "datamodule", None)
        images = {} if data is None else {"perf/images_per_second": data.batch_size * world_size() / seconds}
        return {"perf/step_ms": 1000 * seconds, **images}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch overloads it
        """Without the frozen networks, and without what adapters share with them."""
        state, shared = super().state_dict(*args, **kwargs), shared_names(self)
        return {n: v for n, v in state.items() if n not in shared and not n.startswith(self.frozen_prefixes)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description of the model and the random states of every rank (for teachers that learn with dropout).

        Raises:
            NonFiniteError: where the turn that just ended was broken, so that nothing of it is saved.
        """
        self.guard.settle()
        checkpoint["guard"] = self.guard.state_dict()
        checkpoint[RECORD] = model_record(self.generative_model())
        mine = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            mine["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint["random_states"] = gather_objects(mine)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the weights fit this configuration, and keep the random states for the start of the loop."""
        expected = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        if expected != found:
            differ = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
            shown = "; ".join(f"{k} expected {expected.get(k, 'none')}, got {found.get(k, 'none')}" for k in differ[:3])
            raise CheckpointError(
                f"this checkpoint is of another architecture or configuration ({len(differ)} tensors differ): {shown}; "
                "continue with the configuration that it was made with"
            )
        self._random_states = checkpoint.get("random_states")
        self.guard.load_state_dict(checkpoint.get("guard", {"skipped": 0, "in_a_row": 0}))
        self._seconds_before = checkpoint[RECORD]["facts"]["train_seconds"]

    def on_train_start(self) -> None:
        """Start the clock, cut the log back to this turn, and restore the random state of this rank after a resume."""
        self._started = time.perf_counter()
        for logger in (logger for logger in self.loggers if isinstance(logger, JsonlLogger)):
            on_rank_0(functools.partial(logger.continue_from, self.global_step))
        states = self._random_states
        if states is None and world_size() > 1:  # seed_everything gives every rank the same dropout masks
            torch.manual_seed(fold_seed(self.seed, self.global_rank))
        if states is not None and self.global_rank >= len(states):  # saved by fewer processes
            torch.manual_seed(fold_seed(self.seed, self.global_rank, self.global_step))
        if states is not None and self.global_rank < len(states):
            torch.set_rng_state(states[self.global_rank]["cpu"])
            if self.device.type == "cuda" and "cuda" in states[self.global_rank]:
                torch.cuda.set_rng_state(states[self.global_rank]["cuda"], self.device)
        self._random_states = None


def mean_of(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Numbers of the micro-batches of a turn, averaged by name, without gradient."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.stack([part[name].detach() for part in parts]).mean(0) for name in parts[0]}
