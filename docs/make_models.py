"""Draw docs/models/*.svg and rewrite the generated parts of docs/models.md: `python docs/make_models.py`.

The prose is written in the page itself. What stands there between `<!-- MAKER: ARGUMENT -->` and `<!-- end -->` is made
here from the code: tables of variants from `PUBLISHED` and `catalogue`, formulas from docstrings, kernels from modules.
"""

import fnmatch
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import timm
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from torch import nn

from dmformer.models import PUBLISHED
from dmformer.models.catalogue import catalogue
from dmformer.models.family import Weights
from dmformer.models.smt import hybrid
from dmformer.nn.layers import DepthwiseMlp
from dmformer.nn.mixers.attention import ValueConvAttention
from dmformer.nn.mixers.dma import DMA
from dmformer.nn.mixers.lka import LKA, LargeKernel, decompose, decomposed_cost, plain_cost
from dmformer.nn.mixers.performer import Performer
from dmformer.nn.mixers.sam import SAM
from dmformer.nn.mixers.window import WindowAttention
from dmformer.nn.vitae_cells import NormalCell, ReductionCell

DOCS = Path(__file__).parent
PAGE = DOCS / "models.md"
DRAWINGS = DOCS / "models"
GOLDEN = DOCS.parent / "tests" / "golden"


# ---- the page


TRAINED_ON = {
    "untrained": "ImageNet-1K",
    "in1k": "ImageNet-1K",
    "in22k": "ImageNet-22K",
    "in22k_ft_in1k": "ImageNet-22K, then 1K",
    "in22k_ft_in1k_384": "ImageNet-22K, then 1K at 384",
}
FORMULAS: dict[str, type] = {
    c.__name__: c
    for c in (DMA, LargeKernel, LKA, DepthwiseMlp, SAM, ValueConvAttention, Performer, ReductionCell, NormalCell)
}
COST_DIM = 64
COST_KERNELS = (7, 11, 21, 35)


def render(page: str) -> str:
    """The page with everything that is generated in it made anew."""
    makers: dict[str, Callable[[str], str]] = {f.__name__: f for f in (variants, formula, exact, costs)}
    return re.sub(
        r"(<!-- (\w+): (.+?) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{makers[found[2]](found[3])}\n\n{found[4]}",
        page,
        flags=re.S,
    )


def variants(pattern: str) -> str:
    """The table of the models that a pattern names, a row for each of their weights."""
    head = "model, parameters, GMACs, published (M), published (G), top-1 (%), trained on, the authors' files"
    rows: list[Sequence[str]] = [head.split(", "), ["---", *["--:"] * 5, "---", "---"]]
    for entry in sorted(catalogue(pattern), key=lambda entry: entry.parameters):
        published = PUBLISHED[entry.name]
        first = (
            f"`{entry.name}`",
            f"{round(entry.parameters * 1e6):,}",
            f"{entry.gmacs:.3f}",
            _number(published.parameters),
            _number(published.gflops),
        )
        for i, weights in enumerate(published.weights):
            files = ", ".join(f"`{file}`" for file in weights.files)
            rows.append((*(first if i == 0 else [""] * 5), _number(weights.top1, ".1f"), _trained_on(weights), files))
    return "\n".join(f"| {' | '.join(row)} |".replace("  ", " ") for row in rows)


def _number(value: float | None, spec: str = "g") -> str:
    return "" if value is None else format(value, spec)


def _trained_on(weights: Weights) -> str:
    known = weights.top1 is not None or weights.files
    return "; ".join(part for part in (TRAINED_ON[weights.tag] if known else "", weights.note) if part)


def formula(names: str) -> str:
    """The formulas that the docstrings of some classes state: their indented lines before "Args:"."""
    blocks = []
    for name in names.split():
        text = (inspect.getdoc(FORMULAS[name]) or "").split("\nArgs:")[0]
        blocks.append("\n".join([name, *(line for line in text.splitlines() if line.startswith("    "))]))
    return "```text\n" + "\n\n".join(blocks) + "\n```"


def exact(pattern: str) -> str:
    """What of a family is compared with its authors' code."""
    names = fnmatch.filter(sorted(file.stem for file in GOLDEN.glob("*.json")), pattern)
    text = (
        "**Exact.** The parameter count of every variant matches to the digit. For "
        + " and ".join(f"`{name}`" for name in names)
        + ", the outputs match too: with weights and images from a formula, we compare the mean, the standard "
        "deviation, the largest magnitude and sixteen single values of every stage and of the logits. They differ from "
        "the authors' code by less than 1e-4 of the largest magnitude (`tests/test_golden.py`)."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False)


def costs(dim: str) -> str:
    """The cheapest decomposition of some kernels, beside the plain convolution."""
    C = int(dim)
    rows = ["| K | best d | depth-wise kernels | decomposed | plain K×K |", "|--:|--:|---|--:|--:|"]
    for kernel in COST_KERNELS:
        best = cheapest(kernel)
        kernels = " or ".join(f"{a}×{a} + {b}×{b}" for a, b in (decompose(kernel, d) for d in best))
        cost, plain = decomposed_cost(kernel, best[0], C).parameters, plain_cost(kernel, C).parameters
        rows.append(f"| {kernel} | {' or '.join(map(str, best))} | {kernels} | {cost:,} | {plain:,} |")
    return "\n".join(rows)


def cheapest(kernel: int) -> list[int]:
    """The dilations of fewest parameters; a kernel may have two."""
    cost = {d: decomposed_cost(kernel, d, COST_DIM).parameters for d in range(1, kernel + 1)}
    return [d for d in cost if cost[d] == min(cost.values())]


# ---- tools to draw with


INK, FAINT, FRAME = "#1f2328", "#818b98", "#d0d7de"
FILLS = {"space": "#cfe3f8", "point": "#e9ecef", "norm": "#fdf0c4", "attend": "#e3d7f5", "part": "white"}
HUES = ("#4c8fd6", "#e08a3c", "#5aa469", "#b565a7")
TAP = "#0b5cad"
SIZE, ICON = 8.5, 30
"""Of letters and of pictures of kernels, in points; coordinates are points too, from the upper left corner."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Node:
    """A box, an operator or a word: where it stands, and where arrows touch it."""

    x: float
    y: float
    w: float
    h: float

    @property
    def left(self) -> Point:
        return self.x, self.y

    @property
    def right(self) -> Point:
        return self.x + self.w, self.y

    @property
    def top(self) -> Point:
        return self.x + self.w / 2, self.y - self.h / 2

    @property
    def bottom(self) -> Point:
        return self.x + self.w / 2, self.y + self.h / 2


class Card:
    """A white card to draw on, readable on light and on dark pages."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width / 72, height / 72))
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")
        self.frame(Node(0.5, height / 2, width - 1, height - 1), "white", FRAME, radius=6)

    def text(self, x: float, y: float, text: str, colour: str = INK, align: str = "left") -> None:
        self.axes.text(x, y - 1, text, color=colour, size=SIZE, ha=align, va="center_baseline", linespacing=1.25)

    def node(
        self,
        x: float,
        y: float,
        text: str,
        kind: str = "word",
        taps: tuple[int, int, int] | None = None,
        width: float = 0,
        colour: str = TAP,
    ) -> Node:
        """What stands with its left side at x and its middle at y.

        Args:
            x, y: Where.
            text: What it says.
            kind: A key of `FILLS`, "op" for a circle, or "word" for a text without either.
            taps: Kernel size, dilation and pixels of a picture of a kernel before the text.
            width: The least of the box.
            colour: Of the kernel.
        """
        if kind == "op":
            self.axes.add_patch(Circle((x + 8, y), 8, facecolor="white", edgecolor=INK, linewidth=0.9))
            for dx, dy in {"+": [(4, 0), (0, 4)], "×": [(3, 3), (3, -3)]}[text]:
                self.axes.plot([x + 8 - dx, x + 8 + dx], [y - dy, y + dy], color=INK, linewidth=0.9)
            return Node(x, y, 16, 16)
        if kind == "word":
            self.text(x + 3, y, text)
            return Node(x, y, text_width(text) + 6, 12)
        icon = ICON + 5 if taps else 0
        width = max(width, text_width(text) + icon + 12)
        node = Node(x, y, width, max(11.5 * (text.count("\n") + 1) + 9, icon + 3))
        self.frame(node, FILLS[kind])
        self.text(x + (width + icon) / 2, y, text, align="center")
        if taps:
            self.taps(x + 5, y - ICON / 2, *taps, colour)
        return node

    def stack(self, x: float, rows: Sequence[float], *items: tuple) -> list[Node]:
        """Boxes (text, kind, taps) below each other, equally wide."""
        width = max(text_width(text) for text, *_ in items) + ICON + 17
        return [self.node(x, y, *item, width=width) for y, item in zip(rows, items, strict=True)]

    def chain(self, x: float, y: float, *items: tuple, gap: float = 15) -> list[Node]:
        """Nodes (text, kind, taps) from left to right from x, each with an arrow from the one before."""
        nodes: list[Node] = []
        for item in items:
            nodes.append(self.node(nodes[-1].right[0] + gap if nodes else x, y, *item))
            if len(nodes) > 1:
                self.arrow(nodes[-2].right, "-", nodes[-1].left)
        return nodes

    def frame(self, node: Node, fill: str, edge: str = INK, style: str = "-", radius: float = 3.5) -> None:
        """A box with round corners."""
        at, shape = (node.x, node.y - node.h / 2), f"round,pad=0,rounding_size={radius}"
        look: dict[str, Any] = dict(facecolor=fill, edgecolor=edge, linestyle=style, linewidth=0.9)
        self.axes.add_patch(FancyBboxPatch(at, node.w, node.h, shape, **look))

    def group(self, nodes: Sequence[Node], label: str, pad: float = 8, above: float = 0) -> None:
        """A dashed frame around nodes, its label above its upper left corner."""
        left, right = min(n.x for n in nodes) - pad, max(n.right[0] for n in nodes) + pad
        top = min(n.top[1] for n in nodes) - pad - above
        bottom = max(n.bottom[1] for n in nodes) + pad
        self.frame(Node(left, (top + bottom) / 2, right - left, bottom - top), "none", FAINT, "--")
        self.text(left + 2, top - 8, label, FAINT)

    def taps(self, x: float, y: float, kernel: int, dilation: int, pixels: int, colour: str) -> None:
        """The places that a kernel reads in a square of pixels, its upper left corner at (x, y)."""
        self.axes.add_patch(Rectangle((x, y), ICON, ICON, facecolor="white", edgecolor=FAINT, linewidth=0.5))
        first, pixel = (pixels - dilation * (kernel - 1) - 1) / 2, ICON / pixels
        places = [pixel * (first + dilation * i) for i in range(kernel)]
        square = Outline.unit_rectangle().transformed(Affine2D().scale(pixel))
        squares = [square.transformed(Affine2D().translate(x + dx, y + dy)) for dx in places for dy in places]
        self.axes.add_patch(PathPatch(Outline.make_compound_path(*squares), facecolor=colour, linewidth=0))

    def square(self, x: float, y: float, side: float, colour: str) -> None:
        """A square with its left side at x and its middle at y."""
        self.axes.add_patch(
            Rectangle((x, y - side / 2), side, side, facecolor=colour, edgecolor="white", linewidth=0.8)
        )

    def arrow(self, start: Point, way: str, end: Point, at: float | None = None, colour: str = INK) -> None:
        """An arrow along `way`: "-" straight, "-|" across then down, "|-", and "-|-" or "|-|" with middle at `at`."""
        (a, b), (c, d) = start, end
        middle = ((a + c) / 2 if way == "-|-" else (b + d) / 2) if at is None else at
        corners = {
            "-": [],
            "-|": [(c, b)],
            "|-": [(a, d)],
            "-|-": [(middle, b), (middle, d)],
            "|-|": [(a, middle), (c, middle)],
        }[way]
        points = [start, *corners, end]
        vertices, codes = [start], [Outline.MOVETO]
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            vertices += [towards(corner, before, 5), corner, towards(corner, after, 5)]
            codes += [Outline.LINETO, Outline.CURVE3, Outline.CURVE3]
        path = Outline([*vertices, end], [*codes, Outline.LINETO])
        head: dict[str, Any] = dict(arrowstyle="-|>,head_length=3.6,head_width=1.9", mutation_scale=1)
        self.axes.add_patch(FancyArrowPatch(path=path, color=colour, linewidth=0.9, joinstyle="miter", **head))

    def split(self, node: Node, distance: float = 7) -> Point:
        """A dot behind a node from which further arrows start."""
        at = (node.right[0] + distance, node.y)
        self.axes.add_patch(Circle(at, 1.7, color=INK, linewidth=0))
        return at

    def fan(self, node: Node, branches: Sequence[Node]) -> None:
        """Arrows from one node to several behind it."""
        at = (node.right[0] + branches[0].x) / 2
        for branch in branches:
            self.arrow(node.right, "-" if branch.y == node.y else "-|-", branch.left, at)

    def merge(self, branches: Sequence[Node], sum_: Node) -> None:
        """Arrows from several nodes to an operator behind them, from above, before and below."""
        for branch in branches:
            if branch.y == sum_.y:
                self.arrow(branch.right, "-", sum_.left)
            else:
                self.arrow(branch.right, "-|", sum_.top if branch.y < sum_.y else sum_.bottom)


def text_width(text: str) -> float:
    return max(TextPath((0, 0), line, size=SIZE).get_extents().width for line in text.split("\n"))


def towards(point: Point, other: Point, radius: float) -> Point:
    """The point `radius` from one point to another, or half-way where they are near."""
    dx, dy = other[0] - point[0], other[1] - point[1]
    length = abs(dx) + abs(dy)
    share = min(radius / length, 0.5) if length else 0
    return point[0] + share * dx, point[1] + share * dy


# ---- the drawings, one function a picture


def block() -> Figure:
    """The skeleton that all families share."""
    card = Card(586, 164)
    names = ["stem\nstride 4"] + ["down\nstride 2"] * 3
    stages = [item for i, name in enumerate(names, 1) for item in ((name, "space"), (f"stage {i}", "part"))]
    chain = card.chain(9, 42, ("image",), *stages, ("pool", "norm"), ("classifier", "point"), gap=11)
    for stride, stage in zip((4, 8, 16, 32), chain[2:9:2], strict=True):
        card.text(stage.top[0], stage.top[1] - 8, f"1/{stride}", FAINT, align="center")
    y = 122
    scale, drop = ("layer\nscale", "norm"), ("drop\npath", "norm")
    x, _, _, _, _, plus1, *_, plus2, _ = nodes = card.chain(
        24, y, ("x",), ("norm", "norm"), ("token\nmixer", "part"), scale, drop, ("+", "op"),
        ("norm", "norm"), ("MLP", "point"), scale, drop, ("+", "op"), ("out",), gap=18.3,
    )  # fmt: skip
    for node, plus in ((x, plus1), (plus1, plus2)):
        card.arrow(card.split(node), "|-|", plus.top, at=y - 28)
    card.group(nodes, "each block of a stage", above=10)
    return card.figure


def dma() -> Figure:
    """Dynamic Multi-level Attention."""
    card = Card(560, 228)
    mixer: Any = DMA(16)
    y = 104
    x, expand = card.chain(12, y, ("x",), ("expand\n1×1", "point"), gap=20)
    branches = card.stack(124, (52, y, 156), *(depthwise(conv) for conv in mixer.levels.convs))
    add, *_, plus, _, gate, _ = card.chain(
        242, y, ("+", "op"), ("BN", "norm"), ("ReLU", "norm"), ("reduce\n1×1", "point"), ("+", "op"),
        ("proj\n1×1", "point"), ("×", "op"), ("out",), gap=17,
    )  # fmt: skip
    card.fan(expand, branches)
    card.merge(branches, add)
    start = card.split(x)
    card.arrow(start, "|-|", plus.top, at=18)
    weights = card.chain(
        124, 204, ("GAP", "norm"), ("FC  C → C/16", "point"), ("ReLU", "norm"), ("FC  C/16 → C", "point"),
        ("sigmoid", "norm"),
    )  # fmt: skip
    card.arrow(start, "|-", weights[0].left)
    card.arrow(weights[-1].right, "-|", gate.bottom)
    card.text(gate.bottom[0] - 7, 168, "a weight for\neach channel", FAINT, align="right")
    return card.figure


def depthwise(conv: Any, pixels: int = 19) -> tuple:
    """The box of a depth-wise convolution."""
    kernel, dilation = conv.kernel_size[0], conv.dilation[0]
    text = f"DW {kernel}×{kernel}" + (f"\ndilation {dilation}" if dilation > 1 else "")
    return text, "space", (kernel, dilation, pixels)


def lka() -> Figure:
    """VAN's attention: the decomposed large kernel as a gate."""
    card = Card(570, 140)
    kernel, y = LargeKernel(8), 70
    large = depthwise(kernel.local), depthwise(kernel.dilated), ("1×1", "point"), ("×", "op")
    x, *_, u, first, _, _, times, _, plus, _ = card.chain(
        12, y, ("x",), ("proj1\n1×1", "point"), ("GELU", "norm"), ("u",), *large, ("proj2\n1×1", "point"),
        ("+", "op"), ("out",), gap=18,
    )  # fmt: skip
    card.arrow(card.split(u), "|-|", times.top, at=y - 32)
    card.group([u, first, times], "large kernel", pad=7, above=9)
    card.arrow(card.split(x), "|-|", plus.bottom, at=y + 48)
    return card.figure


def lka_cost() -> Figure:
    """Parameters of the decomposition against the dilation."""
    card = Card(460, 262)
    card.text(54, 20, f"parameters of the decomposition in thousands, C = {COST_DIM}; the ring is the least")
    axes = card.figure.add_axes((0.1, 0.15, 0.86, 0.72))
    for kernel, colour in zip(COST_KERNELS, HUES, strict=True):
        cost = {d: decomposed_cost(kernel, d, COST_DIM).parameters / 1e3 for d in range(1, min(kernel, 10) + 1)}
        axes.plot(list(cost), list(cost.values()), ".-", color=colour, linewidth=1.3)
        best = cheapest(kernel)
        axes.plot(best, [cost[d] for d in best], "o", markersize=10, markerfacecolor="none", markeredgecolor=colour)
        axes.text(0.85, cost[1], f"K = {kernel}", color=colour, ha="right", va="center")
    axes.set(yscale="log", xlim=(0, 10.3), xticks=range(1, 11), xlabel="dilation d")
    axes.set_yticks([5, 10, 20, 40, 80], ["5", "10", "20", "40", "80"])
    axes.minorticks_off()
    axes.grid(color=FRAME, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    return card.figure


def sam() -> Figure:
    """Scale-Aware Modulation."""
    card = Card(616, 262)
    modules = list(SAM(8).mhmc.convs)
    heads, shown, cell, top = len(modules), 3, 14, 34  # channels of a head that are drawn; the height of one
    y = top + heads * shown * cell / 2
    rows = [top + (n + 0.5) * shown * cell for n in range(heads)]
    x, s = card.chain(12, y, ("x",), ("s\n1×1", "point"), gap=20)
    convs = [card.node(104, rows[n], *depthwise(conv, 9), colour=HUES[n]) for n, conv in enumerate(modules)]
    card.fan(s, convs)
    before, after = 196, 268
    for n, conv in enumerate(convs):
        card.arrow(conv.right, "-", (before, conv.y), colour=HUES[n])
        for g in range(shown):
            source, target = (top + (i + 0.5) * cell for i in (n * shown + g, g * heads + n))
            card.axes.plot([before + cell, after], [source, target], color=HUES[n], linewidth=0.8)
            card.square(before, source, cell, HUES[n])
            card.square(after, target, cell, HUES[n])
    for g in range(shown):
        card.frame(Node(after - 1, top + (g + 0.5) * heads * cell, cell + 2, heads * cell), "none")
    shuffled = Node(after, y, cell, heads * shown * cell)
    w0, *_, w1, times, _, _ = card.chain(
        304, y, ("W0 1×1\nin C/4 groups\nC → 2C", "point"), ("BN\nGELU", "norm"), ("W1 1×1\n2C → C", "point"),
        ("×", "op"), ("proj\n1×1", "point"), ("out",), gap=18,
    )  # fmt: skip
    card.arrow(shuffled.right, "-", w0.left)
    v = card.node(s.x, 236, "v\n1×1", "point")
    card.arrow(card.split(x), "|-", v.left)
    card.arrow(v.right, "-|", times.bottom)
    card.group([*convs, Node(before, y, cell, shuffled.h)], "MHMC", pad=6)
    card.group([Node(before + cell + 18, y, 1, shuffled.h), w1], "SAA", pad=6)
    return card.figure


def smt_attention() -> Figure:
    """SMT's self-attention with its path for the values."""
    card = Card(474, 180)
    x, k = card.chain(12, 90, ("x",), ("k\n1×1", "point"), gap=20)
    q, v = (card.node(k.x, row, f"{name}\n1×1", "point") for name, row in (("q", 36), ("v", 144)))
    start = card.split(x)
    for node in (q, v):
        card.arrow(start, "|-", node.left)
    softmax, total = card.chain(110, 36, ("softmax(q kᵀ / √d)", "attend"), ("weighted\nsum of v", "attend"), gap=20)
    conv = card.node(total.bottom[0] + 18, v.y, *depthwise(ValueConvAttention(8, 1).value_conv, 9))
    plus, *_ = card.chain(conv.right[0] + 18, 36, ("+", "op"), ("proj\n1×1", "point"), ("out",), gap=20)
    card.arrow(q.right, "-", softmax.left)
    card.arrow(k.right, "-|", softmax.bottom)
    card.arrow(v.right, "-", conv.left)
    card.arrow(card.split(v, total.bottom[0] - v.right[0]), "-", total.bottom)
    card.arrow(total.right, "-", plus.left)
    card.arrow(conv.right, "-|", plus.bottom)
    return card.figure


def smt_stages() -> Figure:
    """Where SMT has SAM and where attention."""
    card = Card(484, 176)
    model: Any = timm.create_model("smt_t", device="meta")
    plan, y = [[isinstance(block.mixer, SAM) for block in stage.blocks] for stage in model.stages], 52
    nodes = [card.node(12, y, "image")]
    for i, row in enumerate(plan):
        nodes.append(blocks(card, nodes[-1].right[0] + 32, y, row))
        card.arrow(nodes[-2].right, "-", nodes[-1].left)
        card.text(nodes[-1].top[0], y - 22, f"stage {i + 1}, 1/{4 * 2**i}", FAINT, align="center")
    for strategy, row in zip(("half", "sam", "attention"), (92, 120, 148), strict=True):
        blocks(card, nodes[3].x, row, hybrid(len(plan[2]), strategy))
        card.text(nodes[3].x - 10, row, f'stage 3 with strategy="{strategy}"', FAINT, align="right")
    for early, name, row in ((True, "SAM", 120), (False, "attention", 148)):
        key = blocks(card, nodes[3].right[0] + 32, row, [early])
        card.text(key.right[0] + 6, row, name)
    return card.figure


def blocks(card: Card, x: float, y: float, plan: Sequence[bool]) -> Node:
    """A row of SMT's blocks from x: SAM where true, attention where not."""
    for i, early in enumerate(plan):
        card.node(x + 20 * i, y, "S" if early else "A", "space" if early else "attend", width=18)
    return Node(x, y, 20 * len(plan) - 2, 20)


EARLY = "reduction cell of stages 1 and 2 (kernels and strides of stage 1)"


def vitae() -> Figure:
    """Reduction and normal cell of ViTAE's sizes T to S."""
    model: Any = timm.create_model("vitae_t", device="meta")
    card = Card(628, 476)
    reduction_cell(card, 138, model.stages[0].downsample, EARLY)
    normal_cell(card, 382, model.stages[2].blocks[0], "normal cell")
    return card.figure


def vitaev2() -> Figure:
    """Cells of ViTAEv2: with windows, and over the whole map."""
    model: Any = timm.create_model("vitaev2_s", device="meta")
    card = Card(622, 704)
    reduction_cell(card, 138, model.stages[0].downsample, EARLY)
    reduction_cell(card, 408, model.stages[2].downsample, "reduction cell of stages 3 and 4")
    normal_cell(
        card, 608, model.stages[0].blocks[0], "normal cell of stages 1 and 2; of stages 3 and 4 without windows"
    )
    windows(card, 500, 574)
    return card.figure


def reduction_cell(card: Card, y: float, cell: Any, title: str) -> None:
    """A `ReductionCell`: its attention at height y, the pyramid before it, the convolutions below."""
    convs, attn = cell.prm.convs, cell.attn
    skip = isinstance(attn, Performer) or attn.value_skip
    pixels = max((conv.kernel_size[0] - 1) * conv.dilation[0] + 1 for conv in convs)
    height = 43 * len(convs)
    rows = [y - height / 2 + 43 * (i + 0.5) for i in range(len(convs))]
    x = card.node(12, y, "x")
    pyramid = card.stack(56, rows, *((conv_text(c), "space", (c.kernel_size[0], c.dilation[0], pixels)) for c in convs))
    concat, _, values, _, proj = card.chain(
        pyramid[0].right[0] + 22, y, ("concat", "norm"), ("LN", "norm"), ("q, k, v", "point"),
        (attention_text(attn), "attend"), ("proj", "point"), gap=14,
    )  # fmt: skip
    sums = [("+", "op")] * (2 if skip else 1)
    *first, join, _, _, last, _ = card.chain(
        proj.right[0] + 14, y, *sums, ("LN", "norm"), ("MLP", "point"), ("+", "op"), ("out",), gap=14
    )
    trunk, _ = card.split(x)
    for branch in pyramid:
        card.arrow(x.right, "-|-", branch.left, trunk)
        card.arrow(branch.right, "-|-", concat.left, concat.x - 9)
    card.arrow(proj.right, "-", (*first, join)[0].left)
    if skip:
        card.arrow(card.split(values), "|-|", first[0].top, at=y - 28)
    card.arrow(card.split(join), "|-|", last.top, at=y - 28)
    pcm = convolutions(card, y + height / 2 + 54, cell.pcm)
    card.arrow(x.right, "-|-", pcm.left, trunk)
    card.arrow(pcm.right, "-|", join.bottom)
    card.group(pyramid, "PRM, with GELU", pad=6)
    card.text(12, y - height / 2 - 38, title)


def normal_cell(card: Card, y: float, cell: Any, title: str) -> None:
    """A `NormalCell`: its attention at height y and the convolutions below."""
    pcm = convolutions(card, y + 58, cell.pcm)
    x, _, attn = card.chain(12, y, ("x",), ("LN", "norm"), (attention_text(cell.attn), "attend"), gap=38)
    join, _, _, last, _ = card.chain(
        pcm.right[0] + 20, y, ("+", "op"), ("LN", "norm"), ("MLP", "point"), ("+", "op"), ("out",), gap=18
    )
    card.arrow(attn.right, "-", join.left)
    start = card.split(x)
    card.arrow(start, "|-|", join.top, at=y - 28)
    card.arrow(start, "|-", pcm.left)
    card.arrow(pcm.right, "-|", join.bottom)
    card.arrow(card.split(join), "|-|", last.top, at=y - 28)
    card.text(12, y - 50, title)


def convolutions(card: Card, y: float, pcm: nn.Sequential) -> Node:
    """A `PCM` at height y: one box for a convolution and what follows it."""
    texts: list[str] = []
    for layer in pcm:
        if isinstance(layer, nn.Conv2d):
            texts.append(conv_text(layer))
        else:
            name = type(layer).__name__.replace("BatchNorm2d", "BN")
            texts[-1] += (", " if "\n" in texts[-1] else "\n") + name
    nodes = card.chain(56, y, *((text, "space") for text in texts))
    card.group(nodes, "PCM", pad=6)
    return Node(nodes[0].x, y, nodes[-1].right[0] - nodes[0].x, 0)


def conv_text(conv: Any) -> str:
    """What the box of a convolution over all channels says."""
    side, stride, dilation = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
    stride_text = f", stride {stride}" if stride > 1 else ""
    return f"{side}×{side}{stride_text}" + (f"\ndilation {dilation}" if dilation > 1 else "")


def windows(card: Card, x: float, y: float) -> None:
    """A map padded for its windows, from (x, y)."""
    side, tokens, pitch = 7, 18, 3.6
    count = -(-tokens // side) * side
    before = (count - tokens) // 2
    for start, length, colour in ((0, count, FRAME), (before, tokens, "#b79be0")):
        corner = (x + start * pitch, y + start * pitch)
        card.axes.add_patch(Rectangle(corner, length * pitch, length * pitch, facecolor=colour, linewidth=0))
    end = count * pitch
    for i in range(count + 1):
        look: dict[str, Any] = dict(color="white", linewidth=0.6)
        if i % side == 0:
            look = dict(color=INK, linewidth=0.9, zorder=3)
        card.axes.plot([x, x + end], [y + i * pitch] * 2, **look)
        card.axes.plot([x + i * pitch] * 2, [y, y + end], **look)
    card.text(x + end / 2, y + end + 16, f"{tokens}×{tokens} tokens,\npadded around", FAINT, align="center")


def attention_text(attn: nn.Module) -> str:
    if isinstance(attn, Performer):
        return "performer"
    return f"attention in\n{attn.window}×{attn.window} windows" if isinstance(attn, WindowAttention) else "attention"


FIGURES: dict[str, Callable[[], Figure]] = {
    f.__name__: f for f in (block, dma, lka, lka_cost, sam, smt_attention, smt_stages, vitae, vitaev2)
}


def draw(folder: Path) -> None:
    """All drawings, NAME.svg each; letters as outlines, and the same bytes each time."""
    folder.mkdir(exist_ok=True)
    letters = {"font.family": "DejaVu Sans", "font.size": SIZE, "svg.fonttype": "path"}
    settings: dict[Any, Any] = {**letters, "svg.hashsalt": "dmformer"}
    with matplotlib.rc_context(settings):
        for name, make in FIGURES.items():
            make().savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None, "Creator": None})


def main() -> None:
    draw(DRAWINGS)
    PAGE.write_text(render(PAGE.read_text("utf-8")), "utf-8", newline="\n")


if __name__ == "__main__":
    main()
