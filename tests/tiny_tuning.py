"""Tuning on files of pairs, with a tiny random model and the sample of questions and pairs in its token ids."""

import pandas as pd
from tiny_models import save_folder

from analysis.language_models import load_model
from analysis.study.real_tuning.files import read_choices, read_pairs
from analysis.study.real_tuning.pair_configs import PairConfig
from analysis.study.real_tuning.pair_tuning import tune_on_pairs
from analysis.study.real_tuning.sample import write_sample
from analysis.study.real_tuning.token_files import encode, write_tokens


class WithSpaces:
    """The tiny tokenizer of single characters, to which ' A' to ' H' are one token each."""

    def __init__(self, plain):
        self.plain = plain
        self.bos_token_id, self.eos_token_id, self.pad_token_id = plain.bos_token_id, plain.eos_token_id, None

    def __call__(self, texts, add_special_tokens):
        ids = self.plain(texts, add_special_tokens=add_special_tokens)["input_ids"]
        short = {self.plain(f" {c}", add_special_tokens=False)["input_ids"][1]: c for c in "ABCDEFGH"}
        space = self.plain(" ", add_special_tokens=False)["input_ids"]
        return {"input_ids": [x[1:] if len(x) == 2 and x[:1] == space and x[1] in short else x for x in ids]}


def save_sample(folder):
    """Write a tiny model, and the sample in its token ids."""
    save_folder(folder / "tiny")
    questions, pairs = write_sample(folder)
    loaded = load_model(folder / "tiny")
    facts = {
        "model": "tiny",
        "revision": loaded.revision,
        "vocab_size": 97,
        "transformers": "9",
        "files": {},
        "text": "t",
    }
    made = encode(
        WithSpaces(loaded.tokenizer), read_pairs([pairs])[0], read_choices([questions])[0], ["Some text.", "More of it"],
        "x" * 700, {**facts, "checked_cross_entropy": None}, max_length=160,
    )  # fmt: skip
    write_tokens(made, folder / "tokens.npz")


def config(known, **changes):
    common = {"pairs": 12, "epochs": 1, "batch_size": 6, "evaluated": 20, "held_out": 6, "step_size": 3e-3}
    return PairConfig(model="tiny", tokens=known.digest, **{**common, **changes})


def tuned(place, known, **changes):
    row = tune_on_pairs(config(known, **changes), model=place / "tiny", tokens=place / "tokens.npz")
    return row, pd.DataFrame(row["measurements"])
