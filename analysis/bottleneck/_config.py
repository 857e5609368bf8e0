"""The description of one training: a frozen value, hashed to name its row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..checks import check_choice, check_fields, check_number
from ..teachers import TeacherConfig

NormKind = Literal["budget", "free"]
SoftcapForm = Literal["contraction", "gain"]
FeatureKind = Literal["free", "trunk"]
Optimiser = Literal["lbfgs", "adam"]
DType = Literal["float32", "float64"]
_CHOICES = {
    "norm": ("budget", "free"),
    "softcap_form": ("contraction", "gain"),
    "features": ("free", "trunk"),
    "optimiser": ("lbfgs", "adam"),
    "dtype": ("float32", "float64"),
}


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """One training of a softmax-bottleneck head; two equal configs give the same head on the same machine.

    Attributes:
        teacher: The ground truth and how much of it is seen; its ``seed`` is the data seed.
        hidden_size: D >= 1.
        norm: ``"budget"``, features of norm sqrt(D) as RMSNorm makes them and rows of W of norm at most
            ``norm_coefficient * sqrt(D)``; ``"free"``, no limits.
        norm_coefficient: k > 0 of the budget, so that the norm product is m = k D; without effect on free norms. To
            hold m fixed over hidden sizes give k = m / D.
        temperature: Training temperature T > 0, after the softcap.
        softcap: c > 0, or None for no cap.
        softcap_form: ``"contraction"``, c tanh(z / c), which leaves small logits alone; ``"gain"``, c tanh(z), which
            multiplies them by c.
        label_smoothing: b in [0, 1], convention of :func:`torch.nn.functional.cross_entropy`.
        weight_decay: lambda >= 0, adds (lambda / 2) (mean ||h_n||^2 + mean ||w_k||^2) to the loss; with free norms.
        features: ``"free"``, a vector for each context; ``"trunk"``, a two-layer perceptron of fixed random inputs of
            each context, so that contexts share weights.
        optimiser: ``"lbfgs"``, without a step size; ``"adam"``, ``max_steps`` steps at each of several step sizes, of
            which the one with the least training loss counts: the step size is tuned for every config on its own.
        seed: Seed of the model's first values; the data have a seed of their own.
        max_steps: Most steps of L-BFGS (iterations on a CPU, evaluations on a GPU: ``steps`` of :func:`fit`), or all
            Adam steps.
        tolerance: Training ends when the loss fell by no more than ``tolerance * max(1, loss)`` nats over the last
            tenth of the iterations.
        overtime: L-BFGS goes on to at least this many times the number of iterations at which the head began to count
            as converged (``converged_at`` of :func:`fit`); 1 for no longer than ``tolerance`` asks for.
        dtype: Precision of the training; measurements are always float64.
        confidence_penalty: gamma >= 0, subtracts gamma H(p) from each token's loss: the rival of smoothing (Pereyra et
            al. 2017), as :func:`kernel.linear_cross_entropy` has it.

    Raises:
        TypeError: If a size or seed is not an int, another number is not a Python number (NumPy's scalars are refused),
            or ``teacher`` is not a :class:`~analysis.teachers.TeacherConfig`.
        ValueError: If a field is outside its range.

    Example:
        >>> FitConfig(hidden_size=16, norm_coefficient=0.5).norm_budget
        8.0
        >>> FitConfig(hidden_size=16, temperature=0.0)
        Traceback (most recent call last):
        ValueError: temperature must be finite and greater than 0, got 0.0.
    """

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    hidden_size: int
    norm: NormKind = "budget"
    norm_coefficient: float = 0.1
    temperature: float = 1.0
    softcap: float | None = None
    softcap_form: SoftcapForm = "contraction"
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    features: FeatureKind = "free"
    optimiser: Optimiser = "lbfgs"
    seed: int = 0
    max_steps: int = 3000
    tolerance: float = 2e-6
    overtime: int = 1
    dtype: DType = "float32"
    confidence_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, TeacherConfig):
            raise TypeError(f"teacher must be a TeacherConfig, got {self.teacher!r}.")
        check_fields(self, hidden_size=1, seed=0, max_steps=1, overtime=1)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name in ("norm_coefficient", "temperature", "softcap"):
            if name != "softcap" or self.softcap is not None:
                check_number(name, getattr(self, name), 0, open_low=True)
        check_number("label_smoothing", self.label_smoothing, 0, 1)
        for name in ("tolerance", "weight_decay", "confidence_penalty"):
            check_number(name, getattr(self, name), 0)
        if self.weight_decay and self.norm == "budget":
            raise ValueError(f"weight_decay must be 0 under a norm budget, got {self.weight_decay!r}.")

    @property
    def norm_budget(self) -> float | None:
        """Largest norm product m = k D that the budget allows, before softcap and temperature; None for free norms."""
        return self.norm_coefficient * self.hidden_size if self.norm == "budget" else None

    @property
    def logit_scale(self) -> float:
        """Factor of the logits before the cap, c in the scaled tanh, as c tanh(z) = c tanh((c z) / c); else 1."""
        return self.softcap if self.softcap is not None and self.softcap_form == "gain" else 1.0

    def columns(self) -> dict[str, str | float | int | None]:
        """The config as flat, tidy columns: ``teacher`` is its kind, the two seeds are told apart by name."""
        teacher = {name: getattr(self.teacher, name) for name in self.teacher.__dataclass_fields__}
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "teacher"}
        teacher = {"teacher": teacher.pop("kind"), "data_seed": teacher.pop("seed"), **teacher}
        return {**teacher, "model_seed": own.pop("seed"), **own}
