"""What is measured where nobody has chosen: quality, diversity, modes, copies and pairs."""

from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.density_coverage import DensityCoverage
from fdistill.evaluation.metrics.frechet_distance import FrechetDistance
from fdistill.evaluation.metrics.kernel_distance import KernelDistance
from fdistill.evaluation.metrics.local_coverage import LocalCoverage
from fdistill.evaluation.metrics.memorization import MemorizedFraction
from fdistill.evaluation.metrics.mode_coverage import ModeCoverage
from fdistill.evaluation.metrics.paired_distance import PairedDistance
from fdistill.evaluation.metrics.precision_recall import PrecisionRecall
from fdistill.evaluation.metrics.tail_index import TailIndexDifference
from fdistill.evaluation.metrics.vendi_score import VendiScore


def standard_metrics(num_modes: int) -> dict[str, FeatureMetric]:
    """The metrics of a training run and of a report, by name; those of several numbers name them themselves.

    Args:
        num_modes: of the data; without at least two, modes are not counted.
    """
    metrics: dict[str, FeatureMetric] = {
        "frechet_distance": FrechetDistance(),
        "kernel_distance": KernelDistance(),
        "precision_recall": PrecisionRecall(),
        "density_coverage": DensityCoverage(),
        "vendi_score": VendiScore(),
        "vendi_ratio": VendiScore(relative=True),
        "tail_index": TailIndexDifference(),
        "local_coverage": LocalCoverage(),
        "memorized_fraction": MemorizedFraction(),
        "paired_distance": PairedDistance(),
    }
    if num_modes > 1:
        metrics["modes"] = ModeCoverage(num_modes)
    return metrics
