"""Files of questions and pairs for tuning, the token ids that travel, and which documents are drawn from them."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
from tiny_tuning import WithSpaces, config

from analysis.language_models import load_model
from analysis.study.real_tuning.files import ChoiceQuestion, Pair, read_choices, read_pairs
from analysis.study.real_tuning.pair_documents import _runs, documents_of
from analysis.study.real_tuning.token_files import encode, read_tokens, write_tokens


def write_lines(path, rows):
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_files_of_questions_and_pairs(tmp_path):
    question = {"question": "q?", "options": ["a", "b"], "answer": 1, "subject": "s"}
    path = write_lines(tmp_path / "some_test.jsonl.gz", [question, question, {**question, "question": " r?\n"}])
    found, (facts,) = read_choices([path])
    assert [q[:4] for q in found] == [("some_test", "q?", ("a", "b"), 1), ("some_test", "r?", ("a", "b"), 1)]
    assert (facts.name, facts.rows, len(facts.sha256)) == ("some_test.jsonl.gz", 3, 64)
    pairs = write_lines(tmp_path / "p.jsonl", [{"instruction": " do ", "input": "x", "response": "y\n"}])
    assert read_pairs([pairs])[0][0][:3] == ("p", "do\nx", "y")


def test_a_text_is_in_one_part_for_good(tmp_path):
    many = [{"question": f"question {i}", "options": ["a", "b"], "answer": 0} for i in range(400)]
    first = read_choices([write_lines(tmp_path / "a.jsonl", many)])[0]
    other = [{**row, "question": row["question"] + " ", "options": ["c", "d"]} for row in reversed(many)]
    second = read_choices([write_lines(tmp_path / "b.jsonl", other)])[0]
    assert [q.part for q in first] == [q.part for q in reversed(second)]
    share = np.mean([q.part == "fit" for q in first])
    assert 0.15 < share < 0.35
    assert {q.part for q in first} == {"fit", "scored"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "options": ["a", "b"]}, "has no field 'answer'"),
        ({"question": "q", "options": ["a", "b"], "answer": 2}, "answer must be the index of an option, got 2"),
        ({"question": "q", "options": ["a", "b"], "answer": "b"}, "answer must be the index of an option, got 'b'"),
        ({"question": "q", "options": ["a"], "answer": 0}, "options must be a list of two or more texts"),
        ({"question": " ", "options": ["a", "b"], "answer": 0}, "question must be a text that is not empty"),
        (["q"], "line 1 of .* is not as it must be"),
    ],
)
def test_questions_that_are_none_are_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_choices([write_lines(tmp_path / "a.jsonl", [row])])


def test_pairs_that_are_none_are_refused(tmp_path):
    for row in ({"instruction": "a", "response": ""}, {"instruction": "a", "response": "b", "input": 3}):
        with pytest.raises(ValueError, match="instruction and response must be texts"):
            read_pairs([write_lines(tmp_path / "a.jsonl", [row])])
    with pytest.raises(ValueError, match="must hold a line, got none"):
        read_pairs([write_lines(tmp_path / "a.jsonl", [])])
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="packed where it is called"):
        read_pairs([tmp_path / "b.jsonl.gz"])


def test_prompts_are_masked_and_in_the_stated_format(place, known):
    tokenizer = load_model(place / "tiny").tokenizer

    def text(ids):
        return "".join(tokenizer.convert_ids_to_tokens(list(ids)))

    pair = next(p for p in known.pairs if "digits" in text(p.prompt))
    assert text(pair.prompt).startswith("[BOS]Instruction: Write zero in digits.\nResponse:")
    assert text(pair.response) == " 0[EOS]"
    q = known.questions[0]
    assert text(q.prompt) == "[BOS]Question: What is the opposite of hot?\nAnswer:"
    assert [text(option) for option in q.options] == [" cold", " late", " dry", " slow"]
    assert q.characters == (4, 4, 3, 4)
    assert text(q.lettered).endswith("hot?\nA. cold\nB. late\nC. dry\nD. slow\nAnswer:")
    data = documents_of(known, config(known))
    for document in (*data.train, *data.along["scored"].options, *data.along["scored"].letters):
        kept = [label for label in document.labels if label != -100]
        assert document.tokens[-len(kept) :] == kept
        assert set(document.labels[: -len(kept)]) == {-100}


def test_token_ids_travel(place, known, tmp_path):
    write_tokens(known, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (place / "tokens.npz").read_bytes()
    again = read_tokens(tmp_path / "again.npz")
    assert again == known
    assert len(known.checked) == 3
    other = dataclasses.replace(known.questions[0], answer=1)
    changed = dataclasses.replace(known, questions=(other, *known.questions[1:]))
    write_tokens(changed, tmp_path / "other.npz")
    assert read_tokens(tmp_path / "other.npz").digest != known.digest
    elsewhere = dataclasses.replace(known, facts={**known.facts, "transformers": "10", "checked_cross_entropy": 2.7})
    write_tokens(elsewhere, tmp_path / "elsewhere.npz")
    assert read_tokens(tmp_path / "elsewhere.npz").digest == known.digest
    assert read_tokens(tmp_path / "elsewhere.npz").facts["transformers"] == "10"
    for content in (b"", b"no npz", (place / "tokens.npz").read_bytes()[:500]):
        (tmp_path / "none.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"must be a file of python -m analysis\.real_tuning encode"):
            read_tokens(tmp_path / "none.npz")


def test_letters_must_be_tokens(place):
    tokenizer = load_model(place / "tiny").tokenizer  # a space and a letter are two of its tokens
    with pytest.raises(ValueError, match="tokenizer must have one token for each of"):
        encode(tokenizer, [], [], [], "x", {})
    nine = ChoiceQuestion("s", "q", tuple("abcdefghi"), 0, "fit")
    with pytest.raises(ValueError, match="questions must have at most 8 options, got one of 9"):
        encode(WithSpaces(tokenizer), [Pair("s", "a", "b", "fit")], [nine], [], "x", {"vocab_size": 97})


def test_what_is_cut_off_is_drawn_from_all_of_a_file(known):
    """Files are sorted, by subject or source: neither their first questions nor their first pairs stand for them."""
    question = next(q for q in known.questions if q.part == "scored")
    pair = next(p for p in known.pairs if p.part == "scored")
    many = dataclasses.replace(
        known,
        questions=tuple(
            dataclasses.replace(question, part=part, characters=(*question.characters[:-1], i + 1))
            for i in range(400)
            for part in ("fit", "scored")
        ),
        pairs=(
            *known.pairs,
            *(dataclasses.replace(pair, response=(*pair.response, i % 20, i // 20)) for i in range(400)),
        ),
    )
    data = documents_of(many, config(known, evaluated=100, held_out=60))
    for part, count in (("fit", 25), ("scored", 75)):
        places = [q.characters[-1] for q in data.along[part].questions]
        assert len(places) == count
        assert max(places) > 300
    assert max(d.tokens[-1] for d in data.responses["scored"]) > 14


def test_text_is_cut_where_it_leaves_the_vocabulary():
    within = np.ones(9, bool)
    within[8] = False
    text = (0, *[1] * 20, 8, *[2] * 15, 8, 8, *[3] * 16)
    assert list(_runs(text, within)) == [(0, *[1] * 20), (0, *[3] * 16)]
    assert list(_runs((0, 1, 2), within)) == [(0, 1, 2)]  # whole, however short
    assert list(_runs((0, 8), within)) == []
