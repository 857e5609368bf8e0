"""A table of tier 1 of the real tuning, made by hand: three seeds, four vocabularies, b of 0 and .1."""

import numpy as np
import pandas as pd


def made(fall=0.08, cut_fall=0.08, text=0.02, rank=-1.0):
    """A table of tier 1 whose confidence, on responses at the end, falls by so much where b = .1."""
    lines = []
    for vocabulary, within in ((np.nan, np.nan), (0.0, 12288), (16384.0, 12288), (np.nan, 12288)):
        rows = {0.0: 12288, 16384.0: 16384}.get(vocabulary, 262144)
        for seed in range(3):
            for b in (0.0, 0.1):
                run = {
                    "label_smoothing": b, "temperature": 1.0, "softcap": np.nan, "confidence_penalty": 0.0,
                    "vocabulary": vocabulary, "within": within, "lora": 0, "weight_decay": 0.0, "step_size": 2e-5,
                    "pairs": 1024, "rows": rows, "data_seed": seed,
                }  # fmt: skip
                for epoch in (0, 1, 2, 8):
                    lines += [
                        run | line for line in measured(epoch, b, seed, fall if rows > 20000 else cut_fall, text, rank)
                    ]
    return pd.DataFrame(lines)


def measured(epoch, b, seed, fall, text, rank):
    noise, smoothed = 0.001 * seed, (b > 0) * epoch / 8
    confidence = 0.5 + 0.02 * epoch - fall * smoothed + noise
    for split in ("train", "fit", "scored"):
        line = {"epoch": epoch, "split": split, "view": "response", "source": "all", "exam": np.nan}
        nll = {"train": 1.5 - 0.1 * epoch + 0.2 * smoothed, "fit": 1.5 + 0.02 * (epoch - 1) ** 2, "scored": 1.5}[split]
        scores = {
            "confidence": confidence, "accuracy": 0.5, "ece": abs(confidence - 0.5) + 0.01, "rms": 0.1, "rms_sorted": 0.05, "aurc": 0.3,
            "nll": nll + noise, "activity": 0.1, "effective_rank": 100 + rank * smoothed + noise,
            "smallest_share": 0.01 + noise,
        }  # fmt: skip
        yield line | {"reading": "as_trained", **scores}
        if split == "scored":
            yield line | {"reading": "post_hoc", **scores, "ece": 0.012 + noise}
    line = {
        "epoch": epoch,
        "split": "scored",
        "source": "all",
        "reading": "as_trained",
        "accuracy": 0.4,
        "rms": 0.1,
        "rms_sorted": 0.05,
    }
    ece = 0.01 + text * epoch / 8 + noise
    yield line | {"view": "text", "ece": ece + 0.02 * smoothed, "nll": 2 + 0.1 * epoch, "aurc": 0.4}
    yield line | {"view": "cloze_norm", "exam": "along", "ece": 0.2 + noise, "nll": 1.3}
    yield line | {"view": "cloze_norm", "exam": "along", "bin": 3.0, "ece": np.nan}
    yield line | {"view": "cloze_norm", "exam": "along", "source": "arc", "ece": 0.5}
    if epoch in (0, 8):
        asked = line | {"view": "cloze_norm", "exam": "whole"}
        for source in ("all", "arc_test", "mmlu_test"):
            yield asked | {"ece": 0.1 + 0.01 * epoch - 0.05 * smoothed + noise, "nll": 1.3, "source": source}
        for place, n in ((4, 200), (9, 300), (14, 3)):
            yield asked | {"bin": place, "n": n, "confidence": place / 15, "accuracy": place / 15 - 0.02 * epoch / 8}
