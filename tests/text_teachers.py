"""Imported tiny text-to-image teachers, and data of their prompts."""

import torch
from text_pipelines import side_of
from tiny_runs import GivenData

from fdistill.data.batches import InMemorySplit
from fdistill.io.importing import Options, import_model
from fdistill.io.stock_pipeline import StockPipeline

PROMPTS = ["a red seven", "a blue ground", "a white one", "a green four"]


class _Prompted(InMemorySplit):
    def __init__(self, x, condition):
        super().__init__(x, torch.zeros(len(x), dtype=torch.int64))
        self.condition = condition

    def __getitems__(self, indices):
        return super().__getitems__(indices)._replace(condition=self.condition.rows(torch.as_tensor(indices)))


class GivenPrompts(GivenData):
    """Noise in place of encoded images, each with a prompt."""

    def __init__(self, teacher, condition, batch_size=2):
        x = torch.randn(condition.length, *teacher.sample_shape, generator=torch.Generator().manual_seed(5))
        super().__init__(x, batch_size=batch_size)
        self.teacher, self.condition = teacher, condition

    @property
    def takes(self):
        return self.teacher.denoiser.takes

    def load_splits(self):
        split = _Prompted(self.x, self.condition)
        return split, split


def teacher_and_prompts(folder, name, **options):
    """The teacher of the tiny pipeline in a folder, in two steps, and data of its prompts."""
    side = side_of(name)
    teacher = import_model(folder, Options(resolution=(side,), num_steps=2, **options))
    condition = StockPipeline(folder).ask(PROMPTS, (side, side), null=False, num_steps=1).condition
    return teacher, GivenPrompts(teacher, condition)
