"""What is measured where nobody has chosen: the one list of metrics, of runs and of reports, and their names.

A metric that is added here is logged in every run (student, teacher and floor) and stands in every row of a report.
"""

from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.density_coverage import NeighbourMetrics
from fdistill.evaluation.metrics.frechet_distance import FrechetDistance
from fdistill.evaluation.metrics.in_batch_similarity import InBatchSimilarity
from fdistill.evaluation.metrics.kernel_distance import KernelDistance
from fdistill.evaluation.metrics.local_coverage import LocalCoverage
from fdistill.evaluation.metrics.memorization import MemorizedFraction
from fdistill.evaluation.metrics.mode_coverage import ModeCoverage
from fdistill.evaluation.metrics.paired_distance import PairedDistance
from fdistill.evaluation.metrics.tail_index import TailIndexDifference
from fdistill.evaluation.metrics.tails import TailDiagnostics
from fdistill.evaluation.metrics.vendi_score import VendiScore, VendiScoreAndRatio

WITHOUT_HALVES = ("kernel_distance", "tails", "memorized_fraction", "paired_distance")
"""Those that say nothing of halves of the samples: with an error of their own, or of extremes, copies and pairs."""
IN_REPORTS = {"vendi_score": "vendi", "mode_entropy": "class_entropy"}
"""Names that differ in report.json, which others read."""
NOT_IN_REPORTS = ("modes_covered", "mode_precision", "mode_weight_kl", "effective_modes")
"""Numbers that follow from others, or are infinite where a class is made that the held-out samples lack."""


def standard_metrics(num_modes: int) -> dict[str, FeatureMetric]:
    """The metrics of a training run and of a report, by name; those of several numbers name them themselves.

    Args:
        num_modes: of the data; without at least two, modes are not counted.
    """
    metrics: dict[str, FeatureMetric] = {
        "frechet_distance": FrechetDistance(),
        "kernel_distance": KernelDistance(),
        "neighbours": NeighbourMetrics(),
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


def report_metrics(num_modes: int, radius: float | None = None) -> dict[str, FeatureMetric]:
    """The same and what a run leaves out; Vendi scores from the smaller matrix, for the intervals' many halves.

    Args:
        num_modes: as of `standard_metrics`.
        radius: within which crowding counts neighbours, where it is not to be that of the reference.
    """
    metrics = standard_metrics(num_modes)
    for name in VendiScoreAndRatio.gives:
        del metrics[name]
    return metrics | {
        "vendi": VendiScoreAndRatio(),
        "in_batch_similarity": InBatchSimilarity(),
        "paired_distance": PairedDistance(error=True),
        "tail_index": TailIndexDifference(eps=radius),
        "tails": TailDiagnostics(beside_real=False),
    }
