"""A tiny Llama, a task that it learns in a few steps, and arguments of a Trainer."""

import pytest
import torch

V, LENGTH = 61, 16


class Examples(torch.utils.data.Dataset):
    """Counting modulo V from random starts: learnable in a few steps; prompts of uneven length are masked."""

    def __init__(self, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(V, (count, 1), generator=generator)
        self.tokens = (starts + torch.arange(LENGTH)) % V
        self.labels = self.tokens.clone()
        for row in range(count):
            self.labels[row, : 1 + row % 7] = -100

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return {"input_ids": self.tokens[i], "labels": self.labels[i]}


def model(seed=0, **changes):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": V,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **changes}))


def arguments(folder, **changes):
    transformers = pytest.importorskip("transformers")
    return transformers.TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 3e-2,
            "lr_scheduler_type": "constant",
            "max_steps": 20,
            "dataloader_pin_memory": False,
            **changes,
        }
    )


def smoothed_trainer():
    from kernel.huggingface import SmoothedTrainer

    return SmoothedTrainer
