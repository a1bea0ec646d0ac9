"""Write the results in results/ into docs/comparison.md, between its markers, and draw docs/comparison.svg.

python benchmarks/tables.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import ablation
import comparison
import matplotlib.pyplot as plt
from record import replace_tables, rows
from short_runs import spread

DOCS = Path(__file__).parents[1] / "docs"


def cell(name: str, row: str, data: str, model: str) -> str:
    """Mean, deviation and number of seeds of a row, or a dash if it has not been run."""
    try:
        mean, deviation, seeds = spread(name, row, data, model)
    except ValueError:
        return "–"
    return f"{mean:.1f} ± {deviation:.1f} ({seeds})" if seeds > 1 else f"{mean:.1f} (1)"


def ablation_table() -> str:
    lines = ["| mixer | " + " | ".join(ablation.MODELS) + " | arguments |", "|---|---|---|---|"]
    for row, arguments in ablation.ROWS.items():
        cells = [cell("ablation", row, "tiny20", model) for model in ablation.MODELS]
        lines.append(
            f"| {row} | {' | '.join(cells)} | {'`--model-args ' + ' '.join(arguments) + '`' if arguments else ''} |"
        )
    return "\n".join(lines)


def comparison_table() -> str:
    speed = {row["model"]: row for row in rows("training_speed")}
    lines = [
        "| model | parameters (M) | GMACs at 64 px | images/s in training | tiny20 top-1 (%) | clothing top-1 (%) |",
        "|---|---|---|---|---|---|",
    ]
    for model in comparison.MODELS:
        measured = speed.get(model, {})
        figures = [measured.get(k, "–") for k in ("parameters_m", "gmacs", "images_per_second")]
        cells = [cell("comparison", model, data, model) for data in comparison.DATA]
        lines.append(f"| {model} | {' | '.join([*figures, *cells])} |")
    return "\n".join(lines)


def draw() -> None:
    """Plot accuracy against speed, one panel per data set."""
    speed = {row["model"]: float(row["images_per_second"]) for row in rows("training_speed")}
    figure, panels = plt.subplots(1, len(comparison.DATA), figsize=(9, 3.6), layout="constrained")
    for panel, data in zip(panels, comparison.DATA, strict=True):
        for model in comparison.MODELS:
            try:
                mean, deviation, _ = spread("comparison", model, data, model)
            except ValueError:
                continue
            ours = model.startswith(("dmformer", "van", "smt", "vitae"))
            colour = "#c2410c" if model.startswith("dmformer") else "#1d4ed8" if ours else "#6b7280"
            panel.errorbar(speed[model], mean, yerr=deviation or None, fmt="o", color=colour, capsize=2)
            left = model == "dmformer_t"  # next to resnet18's label
            offset, side = ((-6, -2), "right") if left else ((5, 4), "left")
            panel.annotate(model, (speed[model], mean), offset, textcoords="offset points", fontsize=7, ha=side)
        panel.set(title=data, xlabel="images/s in training, 2 cores", ylabel="top-1 (%)")
        panel.margins(x=0.2, y=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "dmformer"}):
        figure.savefig(DOCS / "comparison.svg", metadata={"Date": None}, facecolor="white")


def main() -> None:
    replace_tables(DOCS / "comparison.md", {"ablation": ablation_table(), "comparison": comparison_table()})
    draw()


if __name__ == "__main__":
    main()
