"""How good and how varied generated samples are, each number computed in float64 from features or labels."""

from fdistill.evaluation.metrics.base import FeatureMetric, RowMetric
from fdistill.evaluation.metrics.classifier import ConvClassifier, train_classifier
from fdistill.evaluation.metrics.condition_diversity import ConditionDiversity, condition_diversity
from fdistill.evaluation.metrics.density_coverage import (
    DensityAndCoverage,
    DensityCoverage,
    NeighbourMetrics,
    density_coverage,
    reference_balls,
)
from fdistill.evaluation.metrics.frechet_distance import FrechetDistance, frechet_distance, gaussian_frechet_distance
from fdistill.evaluation.metrics.in_batch_similarity import InBatchSimilarity, in_batch_similarity
from fdistill.evaluation.metrics.kde_guard import kernel_log_ratio
from fdistill.evaluation.metrics.kernel_distance import KernelDistance, KernelDistanceEstimate, kernel_distance
from fdistill.evaluation.metrics.local_coverage import LocalCoverage, is_covered, local_coverage
from fdistill.evaluation.metrics.memorization import MemorizedFraction, memorized, memorized_fraction
from fdistill.evaluation.metrics.mode_coverage import ModeCoverage, class_entropy, mode_weight_kl
from fdistill.evaluation.metrics.monge_gap import monge_gap
from fdistill.evaluation.metrics.neighbours import (
    Nearest,
    NeighbourStatistics,
    crowding,
    nearest,
    neighbour_distances,
    neighbour_statistics,
)
from fdistill.evaluation.metrics.paired_distance import PairedDistance, paired_distance
from fdistill.evaluation.metrics.pixel_distance import PixelMoments, pixel_frechet_distance
from fdistill.evaluation.metrics.precision_recall import (
    PrecisionAndRecall,
    PrecisionRecall,
    inside_manifolds,
    precision_recall,
)
from fdistill.evaluation.metrics.random_fourier import fourier_features, fourier_frequencies
from fdistill.evaluation.metrics.suite import standard_metrics
from fdistill.evaluation.metrics.tail_index import TailIndexDifference, TailIndices, tail_indices
from fdistill.evaluation.metrics.tails import TailDiagnostics, Tails, tail_diagnostics
from fdistill.evaluation.metrics.truncated_vendi import truncated_vendi_score
from fdistill.evaluation.metrics.utility import utility
from fdistill.evaluation.metrics.vendi_score import (
    VendiScore,
    VendiScoreAndRatio,
    per_class_vendi_score,
    rke,
    vendi_score,
)
from fdistill.evaluation.metrics.vendi_spectrum import vendi_spectrum

__all__ = [
    "ConditionDiversity",
    "ConvClassifier",
    "DensityAndCoverage",
    "DensityCoverage",
    "FeatureMetric",
    "FrechetDistance",
    "InBatchSimilarity",
    "KernelDistance",
    "KernelDistanceEstimate",
    "LocalCoverage",
    "MemorizedFraction",
    "ModeCoverage",
    "Nearest",
    "NeighbourMetrics",
    "NeighbourStatistics",
    "PairedDistance",
    "PixelMoments",
    "PrecisionAndRecall",
    "PrecisionRecall",
    "RowMetric",
    "TailDiagnostics",
    "TailIndexDifference",
    "TailIndices",
    "Tails",
    "VendiScore",
    "VendiScoreAndRatio",
    "class_entropy",
    "condition_diversity",
    "crowding",
    "density_coverage",
    "fourier_features",
    "fourier_frequencies",
    "frechet_distance",
    "gaussian_frechet_distance",
    "in_batch_similarity",
    "inside_manifolds",
    "is_covered",
    "kernel_distance",
    "kernel_log_ratio",
    "local_coverage",
    "memorized",
    "memorized_fraction",
    "mode_weight_kl",
    "monge_gap",
    "nearest",
    "neighbour_distances",
    "neighbour_statistics",
    "paired_distance",
    "per_class_vendi_score",
    "pixel_frechet_distance",
    "precision_recall",
    "reference_balls",
    "rke",
    "standard_metrics",
    "tail_diagnostics",
    "tail_indices",
    "train_classifier",
    "truncated_vendi_score",
    "utility",
    "vendi_score",
    "vendi_spectrum",
]
