"""The trainer of the benchmarks: turns of the endless stream, and nothing printed, validated or written."""

from typing import Any

import lightning.pytorch as L


def quiet_trainer(**settings: Any) -> L.Trainer:
    """A trainer with these settings of Lightning's, for as many turns as `max_steps` says or a callback lets it."""
    return L.Trainer(
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        **settings,
    )
