"""Run the Python of a page of documentation, and save its figures where the page shows them.

    python docs/figures.py after_training.md

Figures are numbered in the order in which the page makes them.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt


def main(name):
    """Save ``figures/<page>_<number>.png`` beside the page."""
    page = Path(__file__).parent / name
    lines = [line[4:] for line in page.read_text().splitlines() if line.startswith((">>>", "..."))]
    exec("\n".join(lines), {})
    for number in plt.get_fignums():
        path = page.parent / "figures" / f"{page.stem}_{number}.png"
        path.parent.mkdir(exist_ok=True)
        plt.figure(number).savefig(path, dpi=100, bbox_inches="tight")
        print(path)


if __name__ == "__main__":
    main(sys.argv[1])
