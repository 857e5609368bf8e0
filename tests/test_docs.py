"""The pages of the documentation: their code runs and prints what they show."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import analysis
from kernel import head_statistics

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NUMBER = re.compile(r"\d*\.\d+")


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_there_are_pages():
    assert {"index", "quickstart", "theory", "study", "kernel", "using_the_loss", "will_smoothing_help"} <= {
        page.stem for page in PAGES
    }


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
@pytest.mark.filterwarnings("default")  # what warns inside transformers' Trainer is not ours
def test_the_code_of_a_page_runs_and_prints_what_it_shows(page, monkeypatch, capsys):
    """With prompts, and in the block of text that follows; where none does, the code prints nothing."""
    if "transformers" in page.read_text(encoding="utf-8"):
        pytest.importorskip("transformers", reason="the huggingface extra is not installed")
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    text, shown = page.read_text(encoding="utf-8"), 0
    for number, block in enumerate(blocks(page)):
        if ">>>" not in block:
            capsys.readouterr()
            exec(compile(block, f"{page.name}[{number}]", "exec"), names)
            _, _, after = text.partition(f"```python\n{block}```\n\n```text\n")
            if after:
                printed, said = capsys.readouterr().out, after.partition("```")[0]
                if page.stem == "how_calibrated":  # numbers of resampling, to some digits
                    printed = printed.replace(f"{names['folder']}/", "")
                    values = [np.array(NUMBER.findall(words), float) for words in (printed, said)]
                    np.testing.assert_allclose(*values, atol=2.1e-3)
                    printed, said = (NUMBER.sub("#", words) for words in (printed, said))
                assert printed == said
                shown += 1
            assert after or "print(" not in block, f"what it prints is not shown:\n{block}"
            continue
        test = doctest.DocTestParser().get_doctest(block, names, f"{page.name}[{number}]", page.name, 0)
        test.globs = names  # shared by the blocks of a page
        lines: list[str] = []
        doctest.DocTestRunner().run(test, out=lines.append, clear_globs=False)
        assert not lines, "".join(lines)
    assert shown == len(re.findall(r"^```\n\n```text$", text, re.MULTILINE))


@pytest.mark.parametrize("kind", ["llama", "phi"])  # phi's head has a bias
def test_losses_of_padded_batches_are_those_of_the_documents_alone(kind):
    """The page's own function, against full logits of each document without padding, in float64."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers", reason="the huggingface extra is not installed")
    from tiny_models import make

    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for block in blocks(DOCS / "will_smoothing_help.md")[:2]:
        exec(block, names)
    model = names["model"] if kind == "llama" else make(kind, vocab_size=128)
    head = model.get_output_embeddings()
    assert (getattr(head, "bias", None) is None) == (kind == "llama")
    with torch.no_grad():
        head.weight.mul_(20)  # predictions that differ
        if kind == "phi":
            head.bias.copy_(torch.randn(128))
        short = names["documents"][2][None, :1]
        for _ in range(8):  # of what the model holds for least likely: its loss is far above those of the others
            short = torch.cat([short, model(short).logits[:, -1:].argmin(-1)], dim=1)
        names["documents"][2] = short[0]
        found = []
        for document in names["documents"]:
            z = model(document[None]).logits[0, :-1].double()
            log_p = z.log_softmax(-1)
            target = log_p.gather(1, document[1:, None])[:, 0]
            found.append(torch.stack([-(log_p.exp() * log_p).sum(-1), -target, -log_p.mean(-1)]))
    pooled = torch.cat(found, dim=1).mean(1).tolist()
    assert names["pooled_losses"](model, names["padded"](names["documents"])) == pytest.approx(pooled, rel=1e-4)
    apart = torch.stack([of_tokens.mean(1) for of_tokens in found]).mean(0)
    assert apart[1].item() > 1.05 * pooled[1]  # so that it matters how documents are weighed


USED = {"torch": torch, "analysis": analysis, "head_statistics": head_statistics}  # what blocks above it have imported


def own_head() -> str:
    """The block for hidden states of the reader's own, without the lines that stand in for them."""
    (code,) = [block for block in blocks(DOCS / "will_smoothing_help.md") if "yours: the next tokens" in block]
    return "\n".join(line for line in code.splitlines() if "# yours" not in line)


def test_the_index_of_your_own_head(capsys):
    generator = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(40, 12, generator=generator), torch.randn(200, 12, generator=generator)
    target = (hidden @ weight.T).argmax(-1)
    exec(own_head(), {**USED, "weight": weight, "states": hidden, "target": target})
    shown = re.fullmatch(r"confidence ([\d.]+), activity index ([-\d.]+), fall ([\d.]+)\n", capsys.readouterr().out)
    assert shown
    z = hidden.double().numpy() @ weight.double().numpy().T  # independently: full logits
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    entropy, loss = -(np.exp(log_p) * log_p).sum(axis=1).mean(), -log_p[np.arange(200), target.numpy()].mean()
    assert float(shown[1]) == pytest.approx(np.exp(log_p).max(axis=1).mean(), abs=0.0051)
    index = (entropy - loss) / (0.1 * (-log_p.mean() - loss))
    assert float(shown[2]) == pytest.approx(index, abs=0.0051)
    fall = 0.1 * (np.exp(log_p).max(axis=1).mean() - 1 / 40) * max(0, 1 - index)
    assert float(shown[3]) == pytest.approx(fall, abs=0.0051)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_bad_head_does_not_fall_by_more_than_it_can(shift, capsys):
    """Wrong tokens: the index is far below 0, or minus infinity, and the fall is counted as at an index of -1."""
    generator = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(40, 12, generator=generator), 2 * torch.randn(200, 12, generator=generator)
    target = (hidden @ weight.T).argmin(-1) if shift else torch.arange(200) % 40
    exec(own_head(), {**USED, "weight": weight, "states": hidden, "target": target})
    confidence, index, fall = map(float, re.findall(r"-?(?:inf|[\d.]+)", capsys.readouterr().out))
    assert index < -1
    assert fall == pytest.approx(0.2 * (confidence - 1 / 40), abs=0.0051)
