"""What a wheel holds beside the code: the committed tables, as ``analysis/data``, where commands find them."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_LEFT_OUT = ("full_rows.xz", "kernel_samples.csv", "response.png")  # rows, samples and a picture: no command reads them


class TablesHook(BuildHookInterface):
    """Adds the tables to a wheel; an editable install has them where they lie."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the tables, before the wheel is written."""
        if version == "editable":
            return
        data = Path(self.root) / "paper_figures" / "data"
        tables = [path for path in sorted(data.rglob("*")) if path.is_file() and path.name not in _LEFT_OUT]
        build_data["force_include"] |= {str(path): f"analysis/data/{path.relative_to(data)}" for path in tables}
