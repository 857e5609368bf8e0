"""S12: files, tokens and pairs, and a row on a text of a second."""

import gzip
import json
import math
from dataclasses import replace

import pytest
import torch

from analysis.lab.placement import Job, compute_job
from analysis.lab.registry import experiment
from analysis.study.from_scratch.__main__ import main
from analysis.study.from_scratch.corpus import find_corpus, prepare, written
from analysis.study.from_scratch.text_grid import TextConfig, configs
from analysis.study.from_scratch.tokens import (
    encoded_pairs,
    excerpts,
    fitting,
    token_bytes,
    tokenizer_in,
    tokenizer_of,
)
from analysis.study.from_scratch.transformer import Trunk

TINY = TextConfig(
    vocab_size=300, hidden_size=4, least=300, most_bytes=30, trunk=Trunk(layers=1, width=8, heads=2, context=40), characters=20_000, batch=16,
    examples=8, epochs=(1,), tuning_batch=4, evaluated=6, asked=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus():
    return written()


@pytest.fixture
def files(corpus, tmp_path):
    """Two texts, one packed as dictionaries are, and pairs."""
    text = "".join(corpus.text)
    (tmp_path / "a.txt").write_text(text[:150_000], encoding="utf-8")
    (tmp_path / "b.dict.dz").write_bytes(gzip.compress(text[150_000:].encode()))
    lines = [{"instruction": f"say {i}", "input": "twice" * (i % 2), "response": f"{i} {i}"} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return [tmp_path / "a.txt", tmp_path / "b.dict.dz"], tmp_path / "pairs.jsonl"


def test_the_files_are_named_once_and_found_again(files, tmp_path, capsys):
    texts, pairs = files
    out = tmp_path / "out"
    arguments = [*map(str, texts), "--pairs", str(pairs), "--out", str(out), "--vocab-sizes", "300"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "b.dict.dz" in printed
    assert "32 of these pairs have at most 128 tokens at V = 300, responses cut to 128 bytes" in printed
    folder = out / "shared" / "S12"
    found = find_corpus(folder)
    assert [source["name"] for source in found.sources] == ["a.txt", "b.dict.dz", "pairs.jsonl"]
    assert found.digest == prepare(texts, pairs, folder).digest
    assert found.pairs[1] == ("Instruction: say 1\ntwice\nResponse:", " 1 1\n")
    assert len(found.pairs_held_out) == 8
    assert not set(found.held_out) & set(found.text)
    everywhere = texts[0].read_text(encoding="utf-8")
    assert 5 < sum(piece in everywhere for piece in found.text[:20]) < 18  # of both files, whatever part is read
    assert len(list(folder.glob("tokenizer_300_*.json"))) == 1
    assert str(tmp_path) not in (folder / "corpus.json").read_text(encoding="utf-8")
    texts[0].write_text("something else " * 20_000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^files must be as they were when .* got other ones\.$"):
        find_corpus(folder)
    assert main(arguments) == 2
    assert "texts must be those that" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"^S12 reads files: python -m analysis\.study\.from_scratch"):
        find_corpus(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"instruction": "a", "input": "", "response": "b"}\n{"text": "c"}', r"line 2 is not\.$"),
        ("no", r"line 1 is not\.$"),
    ],
)
def test_what_is_no_pair_is_refused(files, content, text, tmp_path):
    texts, pairs = files
    pairs.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"must be an object with instruction, input and response, " + text):
        prepare(texts, pairs, tmp_path / "new")


def test_a_short_text_is_refused(files, tmp_path):
    texts, pairs = files
    texts[0].write_text("short", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^texts must fill 50 pieces of 4096 characters, .* got 1 and 40\.$"):
        prepare(texts[:1], pairs, tmp_path / "new")


def test_tokens_are_the_bytes_of_the_text_and_responses_alone_are_predicted(corpus):
    tokenizer = tokenizer_of(corpus, 300, 20_000)
    text = corpus.held_out[0] + "é"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert int(token_bytes(tokenizer)[ids].sum()) == len(text.encode())
    prompt, response = "Instruction: ba\nResponse:", " ab\n"
    sequences, targets = encoded_pairs(tokenizer, [(prompt, response)], 64)
    assert sequences.shape == (1, 65)
    assert targets.shape == (1, 64)
    assert tokenizer.decode(targets[targets >= 0].tolist()) == response
    kept = targets[0] >= 0
    assert torch.equal(sequences[0, 1:][kept], targets[0][kept])
    with pytest.raises(ValueError, match=r"^pairs must be of at most 3 tokens, got one of \d+\.$"):
        encoded_pairs(tokenizer, [(prompt, response)], 2)
    with pytest.raises(ValueError, match=r"^text must have 90000 tokens to find, got \d+\.$"):
        tokenizer_of(corpus, 90_000, 20_000)


def test_more_examples_than_pairs_that_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"^pairs must be 5000 or more of at most 40 tokens at V = 300, .* got \d+ of 160\.$"
    ):
        experiment("S12").compute(replace(TINY, source="written", examples=5000, characters=4000))


def test_the_same_bytes_are_predicted_at_every_vocabulary(corpus):
    """Pairs that fit at the least V alone, cut by bytes and at no half character; text from its first byte on."""
    least, large = (tokenizer_of(corpus, v, 100_000) for v in (300, 600))
    pairs = [*corpus.pairs[:20], ("long " * 40, "no"), ("é", "é" * 30)]
    kept = fitting(least, pairs, 48, 21)
    assert 10 < len(kept) < len(pairs)
    assert kept[-1] == ("é", "é" * 10)
    for part in (kept, fitting(least, excerpts(corpus.held_out[:3], 40), 48, 40)):
        said = []
        for tokenizer in (least, large):
            _, targets = encoded_pairs(tokenizer, part, 48)
            said.append([tokenizer.decode(row[row >= 0].tolist()) for row in targets])
        assert said[0] == said[1] == [response for _, response in part]
    with pytest.raises(ValueError, match=r"^pairs must be of at most 2 tokens, responses cut to 9 bytes, got none\.$"):
        fitting(least, pairs[:1], 2, 9)


def test_excerpts_are_of_all_pieces_before_more_of_one():
    assert excerpts(["abcdeé", "fgh"], 3) == [("\n", text) for text in ("abc", "fgh", "de")]


def test_vocabularies_are_trained_once(corpus, tmp_path, monkeypatch):
    made = tokenizer_in(tmp_path, corpus, 300, 20_000)
    monkeypatch.setattr("analysis.study.from_scratch.tokens.tokenizer_of", None)
    assert tokenizer_in(tmp_path, corpus, 300, 20_000).to_str() == made.to_str()


def test_all_cells_of_a_grid_are_measured_on_what_fits_at_its_least_vocabulary():
    for preset in ("quick", "full"):
        cells = configs(preset)
        assert {cell.least for cell in cells} == {min(cell.vocab_size for cell in cells)}


def test_a_row_on_given_files(files, tmp_path):
    texts, pairs = files
    out = tmp_path / "out"
    prepare(texts, pairs, out / "shared" / "S12")
    row = compute_job(Job("S12", TINY), device="cpu", out=out)
    json.dumps(row)
    lines = row["measurements"]
    assert {(line["method"], line["epoch"], line["distribution"]) for line in lines} == {
        (method, epoch, name)
        for method, epoch in (("b=0", 0), ("b=0", 1), ("b=0.1", 1))
        for name in ("text", "pairs", "train")
    }
    start = lines[0]
    bits = start["nll"] / math.log(2)
    assert start["bits_per_byte"] == pytest.approx(bits / row["bytes_per_token"])
    assert 0 < start["option_ece"] < 1
    assert row["text_bytes"] == sum(path.stat().st_size for path in (*texts, pairs))
    with pytest.raises(FileNotFoundError, match="S12 reads files"):
        experiment("S12").compute(replace(TINY))
