"""Writes the results of a comparison into its folder."""

from __future__ import annotations

import json
from pathlib import Path

from dpmodel.compare.folder import ComparisonFolder
from dpmodel.compare.html_report import to_html
from dpmodel.compare.pictures import draw_comparison
from dpmodel.compare.results import ComparisonResult
from dpmodel.compare.tables import to_csv, to_markdown
from dpmodel.figures.files import save_figures
from monitors.atomic import PRIVATE_FILE, write_atomically


def write_outputs(result: ComparisonResult, folder: ComparisonFolder) -> list[Path]:
    """Write table, figures and report; return the paths.

    Args:
        result: Results of the comparison.
        folder: Folder of the comparison.
    """
    texts = {
        folder.csv: to_csv(result),
        folder.markdown: to_markdown(result),
        folder.json: json.dumps(result.to_dict(), indent=1) + "\n",
    }
    for path, text in texts.items():
        write_atomically(path, text)
    figures = draw_comparison(result, folder.curves)
    pictures = save_figures(figures, folder.figures, mode=PRIVATE_FILE)
    write_atomically(folder.html, to_html(result, figures))
    return [*texts, *pictures, folder.html]
