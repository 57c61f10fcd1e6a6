"""What happens to a turn with a NaN or an infinity: no weight moves, and the run stops or goes on to the next turn."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fdistill.core.distributed import gather_objects, global_sum


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; no optimiser has moved."""


class TurnValues(NamedTuple):
    """What a turn computed of each of its samples; read only where the turn broke.

    Attributes:
        sigma: noise levels [B].
        values: tensors of B rows, those that were not computed left out.
    """

    sigma: Tensor
    values: list[Tensor]

    @classmethod
    def joined(cls, parts: Sequence["TurnValues"]) -> "TurnValues":
        """Those of all micro-batches of a turn."""
        if len(parts) == 1:
            return parts[0]
        values = zip(*(part.values for part in parts), strict=True)
        return cls(torch.cat([part.sigma for part in parts]), [torch.cat(value) for value in values])


class Check(NamedTuple):
    """The terms of a turn, on how many ranks each is broken [terms], and the turn's samples on this rank."""

    turn: int
    terms: list[str]
    broken: Tensor
    samples: TurnValues | None

    @classmethod
    def of(cls, turn: int, terms: dict[str, Tensor], samples: TurnValues | None) -> "Check":
        """Look at all terms on all ranks; nothing waits for the device."""
        broken = ~torch.stack([term.detach().float() for term in terms.values()]).isfinite()
        return cls(turn, list(terms), global_sum(broken.float()), samples)

    def fault(self) -> str | None:
        """What is broken, the same words on every rank; None where all is finite. Waits for the device."""
        names = [name for name, ranks in zip(self.terms, self.broken.tolist(), strict=True) if ranks]
        if not names:
            return None
        return f"{', '.join(names)} became NaN or infinite in turn {self.turn}; no weight was changed{self._levels()}"

    def _levels(self) -> str:
        """The noise levels at which samples of any rank are broken; of all where only sums and gradients are."""
        rows = [row for rank in gather_objects(self._rows()) for row in rank]
        broken = [sigma for sigma, is_broken in rows if is_broken]
        if not rows:
            return ""
        shown = broken or [sigma for sigma, _ in rows]
        span = f"sigma {min(shown):.3g} to {max(shown):.3g}"
        if not broken:
            return f"; every sample by itself is finite ({span})"
        return f"; {len(broken)} of {len(rows)} samples are broken, at {span}"

    def _rows(self) -> list[tuple[float, bool]]:
        """Noise level of each sample of this rank, and whether one of its values is broken."""
        if self.samples is None:
            return []
        broken = [~value.detach().flatten(1).isfinite().all(1) for value in self.samples.values]
        return list(zip(self.samples.sigma.tolist(), torch.stack(broken).any(0).tolist(), strict=True))


class Guard:
    """Counts the turns that a run skips, and stops it where it may not skip one more.

    A skipped turn leaves weights, optimisers, averages and buffers as they were; only the turn's number goes on.
    """

    def __init__(self, allowed: int) -> None:
        """Args:
        allowed: broken turns in a row that are skipped, >= 0; 0 stops at the first.
        """
        if allowed < 0:
            raise ValueError(f"skip_nonfinite counts turns in a row and is at least 0: got {allowed}; 0 skips none")
        self.allowed, self.skipped, self.in_a_row = allowed, 0, 0
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._later: tuple[Check, torch.cuda.Event | None] | None = None

    def remember(self, buffers: Iterable[Tensor]) -> None:
        """Keep what the forward passes of a turn may change, where the turn may be skipped."""
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers] if self.allowed else []

    def skips(self, check: Check) -> bool:
        """Whether this turn is to be skipped; its buffers are then as they were before it.

        Raises:
            NonFiniteError: on every rank, where it is broken and no more may be skipped.
        """
        fault = check.fault()
        if fault is None:
            self.in_a_row = 0
            return False
        if self.in_a_row >= self.allowed:
            raise NonFiniteError(
                f"{fault}{f' (after {self.in_a_row} skipped turns in a row)' if self.allowed else ''}: lower the "
                "learning rate, check the data, or resume from the last checkpoint"
            )
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        for buffer, before in self._buffers:
            buffer.copy_(before)
        rank_zero_warn(f"skipped: {fault}; {self.skipped} turns skipped so far, {self.in_a_row} in a row")
        return True

    def look_later(self, check: Check) -> Tensor:
        """Read the result when the next turn has been queued; returns the flag [] that holds the optimisers still."""
        flag = (check.broken.sum() > 0).float()
        copy = check.broken.to("cpu", non_blocking=True)
        event = None
        if check.broken.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._later = check._replace(broken=copy), event
        return flag

    def settle(self) -> None:
        """Read the result that was left for later.

        Raises:
            NonFiniteError: on every rank, where that turn was broken.
        """
        if self._later is None:
            return
        (check, event), self._later = self._later, None
        if event is not None:
            event.synchronize()
        self.skips(check)

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue counting."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
