"""What holds for every figure: legible layout, equal bytes when redrawn, embedded TrueType, ICML widths, a caption."""

from __future__ import annotations

import re
import zlib
from importlib import import_module
from pathlib import Path

import matplotlib as mpl
import pytest

from paper_figures import FIGURES
from paper_figures.__main__ import pdf_bytes
from paper_figures.style import COLUMN_WIDTH, TEXT_WIDTH
from paper_figures.tables import available, is_study

NOWHERE = Path("/no/such/folder")
PRESETS = [
    (name, preset)
    for name, module in FIGURES.items()
    for preset in ("quick", "full")
    if all(available(table, preset, NOWHERE) for table in import_module(module).TABLES)
    and (preset == "quick" or any(is_study(table) for table in import_module(module).TABLES))
]
every = pytest.mark.parametrize(("name", "preset"), PRESETS)


def test_every_figure_has_committed_quick_tables():
    assert {name for name, _ in PRESETS} == set(FIGURES)


@every
def test_no_text_is_cut_off_or_lies_on_another_or_on_a_point(name, preset, drawn, check_layout):
    check_layout(drawn(name, preset)[2])


@every
def test_redrawing_gives_the_same_bytes_whatever_the_order_of_the_rows(name, preset, drawn):
    module, rows, figure = drawn(name, preset)
    before = {key: mpl.rcParams[key] for key in mpl.rcParams}
    shuffled = rows if name == "verdicts" else rows.sample(frac=1, random_state=1)  # verdicts stand in their order
    assert pdf_bytes(module.make(shuffled, preset=preset)) == pdf_bytes(figure)
    assert {key: mpl.rcParams[key] for key in mpl.rcParams} == before


@every
def test_the_numbers_of_a_figure_name_its_columns(name, preset, drawn):
    module, rows, _ = drawn(name, preset)
    assert list(rows.columns) == module.COLUMNS
    for column in module.COLUMNS:
        with pytest.raises(ValueError, match=re.escape(f"it lacks {[column]}")):
            module.make(rows.drop(columns=column), preset=preset)
    with pytest.raises(ValueError, match="must have rows to draw, got none"):
        module.make(rows.iloc[:0], preset=preset)


@every
def test_the_page_has_an_icml_width_and_embedded_truetype(name, preset, drawn):
    figure = drawn(name, preset)[2]
    assert figure.get_figwidth() in (COLUMN_WIDTH, TEXT_WIDTH)
    assert figure.get_figheight() <= 9
    content = pdf_bytes(figure)
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL)
    assert b"/FontFile2" in content  # TrueType
    assert b"/Type3" not in content
    assert not any(b"/Subtype /Image" in head for head in content.split(b"stream"))  # nothing is a bitmap
    assert any(b"Tf" in zlib.decompress(s) for s in streams if s[:1] == b"x")  # text is text


@pytest.mark.parametrize("name", FIGURES)
def test_the_caption_stands_in_the_docstring(name):
    module = import_module(FIGURES[name])
    first, _, caption = (module.__doc__ or "").partition("\n\nCaption. ")
    assert "\n" not in first
    assert len(caption) > 200
    for table in (*module.TABLES, *module.OPTIONAL):
        assert table in caption
    assert f"--only {name}" in (module.make.__doc__ or "")
