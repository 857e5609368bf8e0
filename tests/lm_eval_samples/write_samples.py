"""Sample files as lm-evaluation-harness writes them, of four local tasks and a tiny random model, without a network.

``python tests/lm_eval_samples/write_samples.py`` (in ``tests/``'s path, with ``lm-eval[hf]`` installed) writes anew the
files beside it; the committed ones are of lm-eval 0.4.13. The tasks differ in what the files leave to their reader: the
target as a number or a text, a delimiter before the options or none, options that are contexts, a second pass without.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tiny_models import save_folder

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "a dozen")
ROWS = 20


def tasks():
    """Task -> its config and its documents."""
    metrics = [{"metric": "acc"}, {"metric": "acc_norm"}]
    sums = [  # options of one number each, and one that says it in more characters
        {
            "question": f"{i} + {i % 5}",
            "options": [WORDS[(i * k) % 13] for k in (1, 2, 3)] + ["a number"],
            "right": i % 4,
        }
        for i in range(ROWS)
    ]
    words = [  # three to five options
        {
            "question": f"after {WORDS[i % 12]}",
            "options": [f" {w}" for w in WORDS[i % 9 : i % 9 + 3 + i % 3]],
            "right": "",
        }
        for i in range(ROWS)
    ]
    for i, doc in enumerate(words):
        doc["right"] = doc["options"][i % 3]
    blanks = [
        {"first": f"As {a} is less than {b}, {a}", "second": f"As {a} is less than {b}, {b}", "right": i % 2}
        for i, (a, b) in enumerate(zip(WORDS * 2, WORDS[1:] * 2, strict=False))
    ][:ROWS]
    plain = {
        "doc_to_text": "{{question}} =",
        "doc_to_choice": "options",
        "doc_to_target": "right",
        "metric_list": metrics,
    }
    return {
        "sums": (plain, sums),
        "words": ({**plain, "target_delimiter": ""}, words),
        "blanks": (
            {
                "doc_to_text": "right", "doc_to_choice": "{{[first, second]}}", "doc_to_target": "is the smaller one",
                "metric_list": metrics[:1],
            },
            blanks,
        ),
        "information": ({**plain, "metric_list": [*metrics, {"metric": "acc_mutual_info"}]}, sums[:10]),
    }  # fmt: skip


def write_samples(folder: Path) -> list[Path]:
    """Run lm-eval's own command on the tasks; returns the files of samples, which it names by the time."""
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        save_folder(here / "model")
        for name, (config, docs) in tasks().items():
            (here / f"{name}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
            data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(here / f"{name}.jsonl")}}}
            whole = {"task": name, "output_type": "multiple_choice", "test_split": "test", **data, **config}
            (here / f"{name}.yaml").write_text(json.dumps(whole))  # JSON is YAML
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--log_samples"]
        command += ["--model_args", f"pretrained={here / 'model'},dtype=float32", "--include_path", str(here)]
        command += ["--tasks", ",".join(tasks()), "--output_path", str(here / "out"), "--batch_size", "8"]
        offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(here / "cache")}
        subprocess.run(command, check=True, env={**os.environ, **offline}, capture_output=True)
        found = sorted((here / "out").rglob("samples_*.jsonl"))
        for path in found:
            (folder / path.name).write_bytes(path.read_bytes())
        return [folder / path.name for path in found]


if __name__ == "__main__":
    print(*write_samples(Path(__file__).parent), sep="\n")
