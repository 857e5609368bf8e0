"""Tiny random language models of every architecture, and a folder of one with a tokenizer of single characters."""

import pytest
import torch

V, D = 67, 16
SIZES = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,  # logits of a few nats, so that caps and scales matter
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXTRA = {
    "gemma2": {"final_logit_softcapping": 3.0, "tie_word_embeddings": True},
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.125},
    "granite": {"logits_scaling": 4.0},
    "gpt2": {"n_embd": D, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "qwen3": {"tie_word_embeddings": False},
}
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<{{ m['content'] }}>={% else %}{{ m['content'] }}[EOS]\n"
    "{% endif %}{% endfor %}"
)


def make(model_type="llama", seed=0, **changes):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(model_type)
    config = type(config)(**{**SIZES, **EXTRA.get(model_type, {}), **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and gains away from 0 and 1
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def of_class(cls, **changes):
    """A Llama of another class."""
    plain = make("llama", **changes)
    made = cls(plain.config)
    made.load_state_dict(plain.state_dict())
    return made.eval()


def batch(rows=3, length=12, seed=1):
    """Tokens and labels, of which the first and the last rows have some that count for nothing."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, V, (rows, length), generator=generator)
    labels = tokens.clone()
    labels[0, :5] = -100
    labels[-1, -3:] = -100
    return tokens, labels


def count_calls(monkeypatch, model):
    """A list that grows by one with every call of the head, which a hook on it would have refused."""
    calls, linear = [], torch.nn.functional.linear

    def watched(input, weight, bias=None):
        if weight is model.get_output_embeddings().weight:
            calls.append(input.shape)
        return linear(input, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    return calls


def save_folder(folder):
    """A Llama of random weights as safetensors, and its tokenizer."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    characters = sorted({chr(i) for i in range(32, 127)} | {"\n"})
    words = {c: i for i, c in enumerate(["[BOS]", "[EOS]", *characters])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=" "))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="[BOS]", eos_token="[EOS]", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
