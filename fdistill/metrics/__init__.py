"""How good and how varied generated samples are, each number computed in float64 from features or labels."""

from fdistill.metrics.class_entropy import class_entropy, mode_weight_kl, modes_covered
from fdistill.metrics.classifier import ConvClassifier, train_classifier
from fdistill.metrics.frechet_distance import frechet_distance, gaussian_frechet_distance
from fdistill.metrics.precision_recall import PrecisionRecall, precision_recall
from fdistill.metrics.vendi_score import vendi_score

__all__ = [
    "ConvClassifier",
    "PrecisionRecall",
    "class_entropy",
    "frechet_distance",
    "gaussian_frechet_distance",
    "mode_weight_kl",
    "modes_covered",
    "precision_recall",
    "train_classifier",
    "vendi_score",
]
