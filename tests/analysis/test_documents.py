"""Files of text: paragraphs, lines of JSON and what is neither."""

import codecs
import gzip

import pytest

from analysis.language_models import read_text
from analysis.language_models.documents import cut, python_text


def test_text_is_cut_at_paragraphs_and_lines_of_json_are_documents(tmp_path):
    assert list(cut("a" * 25, 10)) == ["a" * 10, "a" * 10, "a" * 5]
    assert list(cut("one\n\n\ntwo", 6)) == ["one", "two"]
    (tmp_path / "two.jsonl").write_text('{"text": "first"}\n\n{"text": "second"}\n')
    assert read_text(tmp_path / "two.jsonl") == ["first", "second"]
    (tmp_path / "bad.jsonl").write_text('{"words": "first"}\n')
    with pytest.raises(ValueError, match=r"every line of .*bad.jsonl must be a JSON object with text, line 1 is not"):
        read_text(tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"text": "first"}\n{"text": null}\n')
    with pytest.raises(ValueError, match=r"text must be a string in every line of .*bad.jsonl, got None in line 2"):
        read_text(tmp_path / "bad.jsonl")
    (tmp_path / "one.jsonl").write_text('{"text": "first\u2028second"}\n', encoding="utf-8")
    assert read_text(tmp_path / "one.jsonl") == ["first\u2028second"]
    (tmp_path / "latin.txt").write_bytes("déjà".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt must be text in UTF-8, got something else"):
        read_text(tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="must hold text, got an empty file"):
        read_text(tmp_path / "empty.txt")


_LINES = '{"text": "first"}\n{"text": "sécond"}\n'
_BOTH = ["first", "sécond"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.Ndjson", "a.jsonlines", "a.json", "b.v2.JSON"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lines_of_json_by_any_name_and_mark(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(_LINES.encode(encoding))
    assert read_text(tmp_path / name) == _BOTH
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(_LINES.replace("\n", "\r\n").encode(encoding)))
    assert read_text(str(tmp_path / f"{name}.gz")) == _BOTH


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"text": "first"}', ["first"]),
        ('[\n {"text": "first", "id": 1},\n {"text": "sécond"}\n]', _BOTH),
        ('["first", "sécond"]', _BOTH),
        ('"first"', ["first"]),
    ],
)
def test_json_as_a_whole(tmp_path, content, expected):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    assert read_text(tmp_path / "a.json") == expected


@pytest.mark.parametrize("name", ["data", "data.txt", "data.v2", "data.gz"])
@pytest.mark.parametrize(
    "content",
    [_LINES, "\n" + _LINES, '[\n {"text": "first"},\n {"text": "sécond"}\n]', '["first", "sécond"]'],
    ids=["lines", "blank", "list", "texts"],
)
def test_json_by_another_name_is_known_by_its_content(tmp_path, name, content):
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_text(tmp_path / name) == _BOTH


@pytest.mark.parametrize(
    "content", ["[1]\nA note.", "{no json}", "[1, 2]", "{{ template }}\n{}", "[]", '"quoted"', "12"]
)
def test_what_only_begins_like_json_is_a_text(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    assert read_text(tmp_path / "a.txt") == [content]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
def test_a_byte_order_mark_is_no_text(tmp_path, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "a.txt").write_bytes((mark + "one\r\ntwo").encode(encoding))
    assert read_text(tmp_path / "a.txt") == ["one\ntwo"]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.json", b'{"data": ["first"]}', "must hold an object with text or a list of texts .*, item 1 is none"),
        ("a.json", b'[{"text": "first"}, {"text": 2}]', "item 2 is none"),
        ("a.json", b'{"text": ', "every line of .*a.json must be a JSON object with text, line 1 is not"),
        ("a.NDJSON", b"first", "every line of .*a.NDJSON must be a JSON object with text, line 1 is not"),
        ("a.txt.gz", b"first", "a.txt.gz must be packed by gzip, got something else"),
        (
            "a.txt.gz",
            gzip.compress(b"first" * 100, mtime=0)[:-9],
            "a.txt.gz must be packed by gzip, got something else or a part",
        ),
        (
            "data",
            b'{"words": "first"}\n{"words": "second"}',
            "every line of .*data must be a JSON object with text, line 1",
        ),
        ("data", b'{\n "words": ["first"]\n}', "data must hold an object with text or a list of texts"),
        ("a.csv", b"text\nfirst\n", "a.csv must be text or JSON, got a table"),
        ("a.PARQUET", b"PAR1", "a.PARQUET must be text or JSON, got a table"),
        ("a.json", b"[]", "must hold text, got an empty file"),
        ("a.txt", codecs.BOM_UTF8, "must hold text, got an empty file"),
    ],
)
def test_files_that_hold_no_text_are_refused(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=text):
        read_text(tmp_path / name)


def test_text_that_comes_with_python():
    own = python_text()
    assert len(own) > 150
    assert all(200 < len(text) <= 1600 for text in own)
    assert any("import " in text for text in own)
