"""Questions: right answers, no fact in two splits, and files that say when they were changed."""

import json
import subprocess
import sys

import pytest

from analysis.study.real_tuning.facts import Fact
from analysis.study.real_tuning.questions import LETTERS, QuestionSet, make_questions, read_questions, write_questions


def known(count=400):
    """Sums asked both ways, with one key for both."""
    there = [Fact("sum", "made up", f"What is {i} + 7?", str(i + 7), f"sum:{i}") for i in range(count)]
    back = [Fact("difference", "made up", f"What is {i + 7} - 7?", str(i), f"sum:{i}") for i in range(count)]
    return there + back


@pytest.fixture
def made():
    return make_questions(known())


def truth(question):
    a, sign, b = question.prompt.removeprefix("What is ").split("?")[0].split()
    return str(int(a) + int(b) if sign == "+" else int(a) - int(b))


def test_answers_are_right_and_formats_even(made):
    choices = [q for q in made if q.options]
    assert 0.4 < len(choices) / len(made) < 0.6
    for question in made:
        if question.options:
            assert len(set(question.options)) == len(LETTERS)
            assert question.options[LETTERS.index(question.answer)] == truth(question)
            assert all(
                f"\n{letter}. {o}\n" in question.prompt for letter, o in zip(LETTERS, question.options, strict=True)
            )
        else:
            assert question.answer == truth(question)
    for letter in LETTERS:
        assert 0.15 < sum(q.answer == letter for q in choices) / len(choices) < 0.35


def test_what_says_the_same_is_in_one_split(made):
    splits = {}
    for question in made:
        n = truth(question) if " - " in question.prompt else str(int(truth(question)) - 7)
        splits.setdefault(n, set()).add(question.split)
    assert all(len(found) == 1 for found in splits.values())
    shares = {name: sum(q.split == name for q in made) / len(made) for name in ("train", "validation", "test")}
    assert shares["train"] == pytest.approx(0.5, abs=0.08)
    assert shares["validation"] == pytest.approx(0.15, abs=0.06)


def test_the_seed_decides_everything_but_the_split():
    one, same, other = (make_questions(known(50), seed) for seed in (1, 1, 2))
    assert one == same
    assert [q.prompt for q in one] != [q.prompt for q in other]
    by_fact = [{q.prompt.split("?")[0]: q.split for q in made} for made in (one, other)]
    assert by_fact[0] == by_fact[1]


def test_kinds_with_too_few_answers_become_short_answers():
    few = [Fact("yes or no", "made up", f"Is {i} even?", "yes" if i % 2 else "no", str(i)) for i in range(20)]
    assert not any(q.options for q in make_questions(few))


def test_files_come_back_and_changes_are_noticed(tmp_path, made):
    from analysis.study.real_tuning.questions import _with_digest

    whole, path = _with_digest(made, ["a text"], {"made up": {"version": "1", "licence": "MIT"}}), tmp_path / "q.json"
    write_questions(whole, path)
    back = read_questions(path)
    assert isinstance(back, QuestionSet)
    assert back == whole
    assert {q.split for q in back.select("test", choice=True)} == {"test"}
    content = json.loads(path.read_text())
    content["questions"][0]["answer"] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"must be as it was written \(digest [0-9a-f]{16}\), got"):
        read_questions(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="must be a file of questions, got something else"):
        read_questions(path)


def test_real_questions():
    for package in ("pycountry", "countryinfo", "periodictable", "pint"):
        pytest.importorskip(package, exc_type=ImportError)
    from analysis.study.real_tuning.facts import SOURCES, facts, ordinary_text, source_table

    found = {f.question: f.answer for f in facts()}
    assert len(found) > 3000
    assert found["What is the capital of France?"] == "Paris"
    assert found["What is the chemical symbol of iron?"] == "Fe"
    assert found["Which element has the atomic number 79?"] == "gold"
    assert found["Which physical quantity is measured in the unit joule?"] == "energy"
    assert found["Which currency has the ISO code JPY?"] == "Yen"
    assert {f.source for f in facts()} == set(SOURCES)
    assert all(entry["version"] and entry["licence"] for entry in source_table().values())
    texts = ordinary_text()
    assert len(texts) > 50
    assert max(map(len, texts)) <= 1600


def test_a_missing_data_package_is_named():
    program = """
import sys
sys.modules["countryinfo"] = None
from analysis.instruction import main
sys.exit(main(["questions", "nowhere.json"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "building questions needs countryinfo: pip install '.[instruction]' in a clone" in done.stderr
