"""Draws docs/pictures/bits.png of README from the tables in docs/results: python tools/bits_picture.py"""

import csv
import re
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
FLOAT = 91.73


def main() -> None:
    """Draw test accuracy against bits: calibrated, after one epoch, and after six epochs at 2 bits."""
    rows = re.findall(r"^\| W(\d)A\1 \| ([\d.]+) \| [\d.]+ \| ([\d.]+) ", (RESULTS / "ladder.md").read_text(), re.M)
    bits = [int(row[0]) for row in rows]
    with (RESULTS / "w2a2-50k.csv").open() as file:
        runs = [r for r in csv.DictReader(file) if r["group"] == "Five pairs" and r["arm"] == "SPEQ"]
    six = [float(r["test_accuracy"]) for r in runs]

    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    axes.axhline(FLOAT, color="0.4", linewidth=1, linestyle="--")
    axes.text(2, FLOAT + 0.6, f"float {FLOAT}", ha="right", va="bottom", color="0.3")
    axes.plot(bits, [float(row[1]) for row in rows], "o-", color="#b45309", label="calibrated only (1 network)")
    axes.plot(bits, [float(row[2]) for row in rows], "o-", color="#1d4ed8", label="trained for 1 epoch (1 seed)")
    axes.plot([2] * len(six), six, "_", color="#047857", markersize=12, label=f"SPEQ, 6 epochs ({len(six)} seeds)")
    axes.annotate(
        f"{statistics.mean(six):.2f}", (2, statistics.mean(six)), (2.12, 88.3), color="#047857", va="center", ha="right"
    )
    axes.set(xlabel="bits of weights and activations", ylabel="test accuracy, %", ylim=(60, 96))
    axes.set_xscale("log", base=2)
    axes.set_xticks(bits, list(map(str, bits)))
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(ROOT / "docs" / "pictures" / "bits.png", dpi=150)


if __name__ == "__main__":
    main()
