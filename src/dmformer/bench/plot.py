"""Plot the results of `dmformer bench`: accuracy against speed."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .rounds import Row


def plot(rows: Sequence[Row], path: Path) -> list[str]:
    """Plot published top-1 against speed at the largest batch, one point per model and form, as .svg or .png.

    A model's points are connected, and the fastest is labelled with its name.

    Returns:
        The models that are missing from the plot because their top-1 is unknown.
    """
    batch_size = max(r.batch_size for r in rows)
    shown = [r for r in rows if r.batch_size == batch_size]
    drawn = sorted(((r.images_per_second, r.top1, r) for r in shown if r.top1 is not None), key=lambda d: d[0])
    several = len({r.dtype for r in shown}) > 1
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for form, dtype in dict.fromkeys((r.form, r.dtype) for r in shown):
        points = [(speed, top1) for speed, top1, r in drawn if (r.form, r.dtype) == (form, dtype)]
        label = f"{form}, {dtype}" if several else form
        axes.plot([speed for speed, _ in points], [top1 for _, top1 in points], "o", label=label)
    for model in dict.fromkeys(r.model for _, _, r in drawn):
        (slowest, top1), *_, (fastest, _) = [(s, t) for s, t, r in drawn if r.model == model] * 2
        axes.plot([slowest, fastest], [top1, top1], color="0.8", zorder=0)
        axes.annotate(model, (fastest, top1), (7, 0), textcoords="offset points", va="center", fontsize="small")
    axes.set(xlabel=f"images/s ({rows[0].mode}, batch {batch_size})", ylabel="published ImageNet-1K top-1 (%)")
    axes.set_title(f"{rows[0].image_size} px, {rows[0].machine}, threads: {rows[0].threads}", fontsize="medium")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.35 * (high - low))  # room for the names
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return sorted({r.model for r in shown if r.top1 is None})
