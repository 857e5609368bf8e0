"""All prose of the verdicts: what findings say, in sentences. Nothing is decided here, and nothing is computed."""

from ._heads import k3, k4, k5, k6, k7, restored
from ._pairs import PAIRS
from ._phrases import Sentences, number
from ._transformers import TEXTS, TRANSFORMERS
from ._tuning import k1, k1_model, k2, k2_model, k8, k8_model, k9, k9_model

__all__ = ["LAW", "MODEL", "PAIRS", "STATEMENTS", "STUDY", "TEXTS", "TRANSFORMERS", "Sentences", "number"]

STATEMENTS = {
    "K1": "instruction tuning degrades calibration",
    "K2": "smoothing keeps calibration during tuning",
    "K3": "hidden size and vocabulary cap confidence",
    "K4": "smoothing has little effect at small hidden size and large vocabulary",
    "K5": "temperature restores the effect of smoothing",
    "K6": "logit capping restores the effect of smoothing",
    "K7": "the smoothed loss costs nothing in memory, speed or accuracy, which efficient losses could not do",
    "K8": "smoothing makes features more diverse, and that helps calibration",
    "K9": "accuracy kept, gap between training and held-out NLL narrower",
}
LAW = "the model tuned without smoothing foretells what smoothing takes"  # no claim of the paper
STUDY = {"K1": k1, "K2": k2, "K3": k3, "K4": k4, "K5": k5, "K6": k6, "K7": k7, "K8": k8, "K9": k9}
MODEL = {
    "K1": k1_model,
    "K2": k2_model,
    "K5": restored("T", "training T ="),
    "K6": restored("cap", "a training cap of"),
    "K8": k8_model,
    "K9": k9_model,
}
