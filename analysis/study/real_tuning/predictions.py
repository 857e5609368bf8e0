"""What was expected of the claims on real models, written before the first run of each preset it is about."""

from __future__ import annotations

from ...lab.registry import Prediction

__all__ = ["PAIR_PREDICTIONS", "PREDICTIONS", "SECOND_TIER", "SHARED_CHANGES"]

PREDICTIONS = (
    Prediction(
        claim="K1",
        verdict="supported",
        statement="Tuning without smoothing raises the ECE on ordinary text above that of the model before tuning; on "
        "new questions it falls while the format is learnt and grows from epoch 1 to the last.",
    ),
    Prediction(
        claim="K2",
        verdict="depends on",
        statement="At the last epoch b = .1 has a lower ECE on new questions than b = 0, and a temperature fitted "
        "afterwards lowers that of b = 0 at least as far; on ordinary text b = .1 changes the ECE by less than .02.",
    ),
    Prediction(
        claim="K5",
        verdict="depends on",
        statement="Norms are free and smoothing acts at T = 1 already: training at T = .5 or 2 changes the gain of "
        "smoothing in ECE, read as trained, by less than .02.",
    ),
    Prediction(
        claim="K6",
        verdict="depends on",
        statement="A cap of 30 or 15 changes the gain of smoothing in ECE by less than .02.",
    ),
    Prediction(
        claim="K8",
        verdict="not decided",
        statement="No expectation: measure the effective rank of the features on new questions against b.",
    ),
    Prediction(
        claim="K9",
        verdict="supported",
        statement="b = .1 changes the accuracy on new questions by less than .02 and narrows the gap between held-out "
        "and training NLL, at the last epoch.",
    ),
)

# Gemma-3-270M (a base model, V = 262144, D = 640) and SmolLM2-135M-Instruct, tuned on 1,024 pairs of instruction and
# response for 8 epochs, and scored on questions that were not tuned on (``python -m analysis.real_tuning``, tier 1; K5
# and K6: tier 2). Confidence, accuracy and ECE on responses are those of the next token over the whole vocabulary.
PAIR_PREDICTIONS = (
    Prediction(
        claim="K1",
        verdict="supported",
        statement="Without smoothing the ECE on held-out responses is lowest at epoch 1 or 2 and ends at least .05 "
        "above that, in both models; on ordinary text it ends at least .02 above that before tuning. In "
        "answer letters both models stay within .05 of chance on MMLU, so that their ECE there says how "
        "sure they are and little else.",
    ),
    Prediction(
        claim="K2",
        verdict="depends on",
        statement="At the last epoch b = .1 has a lower ECE on held-out responses than b = 0, by .03 to .1; on "
        "ordinary text it is higher by more than .01, as the model was nearly calibrated there. A "
        "temperature fitted on other responses, and early stopping, lower the ECE of b = 0 on responses "
        "at least as far. Among the options of questions, which were not tuned on, b = .1 changes ECE "
        "and accuracy by less than .02.",
    ),
    Prediction(
        claim="K4",
        verdict="refuted",
        statement="The activity index of b = .1 on the responses to tune on is below 0 in Gemma before tuning and "
        "below .5 after 8 epochs without smoothing: smoothing acts. Confidence on held-out responses "
        "falls by .06 to .1 from b = .1 at epoch 8, and exceeds accuracy without smoothing by more than "
        ".05 there. Over the vocabulary, cut to what the documents use, to 16384, to 65536 and whole, "
        "this fall changes by less than .03. Inertness (a fall below .01) at any of them, or a fall that "
        "shrinks by more than .03 towards the whole vocabulary, would support the paper.",
    ),
    Prediction(
        claim="K5",
        verdict="depends on",
        statement="Norms are free and smoothing acts at T = 1 already, so training at T = .5 or .25 restores "
        "nothing; as the logits of the start are two or four times what the data want, plain runs end "
        "more over-confident and the gain in ECE, read as trained, is larger. Read at T = 1, both are "
        "worse than trained at T = 1.",
    ),
    Prediction(
        claim="K6",
        verdict="depends on",
        statement="A cap of 30 changes the fall in confidence from b = .1 by less than .02.",
    ),
    Prediction(
        claim="K8",
        verdict="depends on",
        statement="b = .1 changes the effective rank of the features on held-out responses by less than a tenth of it.",
    ),
    Prediction(
        claim="K9",
        verdict="supported",
        statement="b = .1 changes the accuracy on held-out responses by less than .02, and narrows the gap between "
        "their NLL and that of the responses tuned on, at the last epoch.",
    ),
)

# Tier 2 of Gemma-3-270M, beside K5 and K6 above; written when its tier 1 was known, before any row of tier 2. Smoothing
# asks for a gap of log(1 + (1 - b) V / b) nats, a confidence penalty for 1 / (gamma p): the stationary point of
# - log p - gamma H over one target and V - 1 equal others has log p - log p_k = 1 / (gamma p), thus
# 1 - p = (V - 1) e^(- 1 / gamma - H). At V = 262144 that is p = .9995 for gamma = .05 and p = .41 for gamma = .2.
SECOND_TIER = (
    Prediction(
        claim="K2",
        verdict="depends on",
        statement="b = .2 lowers the confidence on held-out responses at epoch 8 by .28 to .36, 1.3 to 1.7 times what "
        "b = .1 did (.217), which overshoots: confidence ends .08 to .18 below accuracy, and the ECE above that of "
        "b = .1 (.033) and below that of b = 0 (.192). Accuracy changes by less than .02.",
    ),
    Prediction(
        claim="K4",
        verdict="depends on",
        statement="A confidence penalty acts or not by the gap that it asks for, and that depends on V as smoothing's "
        "does. gamma = .05 asks for 20 nats, more than smoothing's 14.7, and leaves responses that were tuned on "
        "within .02 of plain training; confidence on held-out responses falls by less than .06. gamma = .2 asks for "
        "12, so that confidence on what was tuned on falls to .3 to .6 and on held-out responses by at least .3: the "
        "model ends under-confident, with an ECE above that of b = 0.",
    ),
)

# Which shared change of the features predicts the fall in confidence of a tuned language model. Rule: the cells are
# those of held-out tokens, of responses (of letters and short answers in ``analysis.instruction``) and of text, one for
# each table, setting, b and view, after the last epoch, means over seeds, whose measured fall is at least .01. Error
# of a candidate: sqrt(sum (measured - predicted)^2 / sum measured^2). The best has the least; it predicts the falls if
# its error is at most .2, and otherwise none does. No candidate has a parameter that is fitted to a fall.
SHARED_CHANGES = Prediction(
    claim="law",
    verdict="refuted",
    statement="An affine map of the features is the best candidate and a map of low rank the second; a scale and a "
    "gain predict more than 1.2 times the fall on held-out responses wherever the plain model's accuracy on the tokens "
    "tuned on is below .9, as they can raise the many tokens that smoothing asks for only by lowering all differences. "
    "The affine map is within 20 % of the fall on held-out responses of Gemma (.06 to .1 at b = .1), and too low by "
    "more than that where what was tuned on has been memorised: of SmolLM2's .30 on short answers after 8 epochs it "
    "predicts at most .2. Over all cells none is within 20 %.",
)
