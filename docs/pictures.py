"""Draw the pictures of the pages, but for the first one (`first_picture.py`): `python docs/pictures.py`."""

import math
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from energy_transformer import (
    EnergyBlock,
    EnergyLayerNorm,
    Record,
    SoftmaxModernHopfield,
    Update,
    demo_checkpoint,
)
from energy_transformer.data import normalize
from energy_transformer.inspection import (
    Picture,
    attention_figure,
    demo_images,
    descent_figure,
    load_for_inspection,
    memory_figure,
    random_masks,
    reconstruct,
    record_descent,
    token_energy_figure,
)

FOLDER = Path(__file__).parent / "images"
BLUE, ORANGE, GRAY = "#2b6cb0", "#dd6b20", "#4a5568"


def _box(axes: Axes, x: float, y: float, width: float, text: str, color: str) -> None:
    axes.add_patch(
        FancyBboxPatch((x, y), width, 0.62, boxstyle="round,pad=0.02,rounding_size=0.1", facecolor=color, alpha=0.18)
    )
    axes.text(x + width / 2, y + 0.31, text, ha="center", va="center", fontsize=9, color="black")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], curve: float = 0.0) -> None:
    style = f"arc3,rad={curve}"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=GRAY, connectionstyle=style))


def one_block() -> Figure:
    """A stack of layers beside one block that is applied again and again."""
    figure = Figure(figsize=(7.2, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, title in ((left, "Transformer"), (right, "Energy Transformer")):
        axes.set(xlim=(0, 5), ylim=(0, 5), title=title)
        axes.axis("off")
    for layer, y in ((1, 0.3), (2, 1.4), (12, 3.6)):
        _box(left, 0.3, y, 1.9, f"attention {layer}", BLUE)
        _box(left, 2.6, y, 1.9, f"feed-forward {layer}", ORANGE)
        _arrow(left, (2.25, y + 0.31), (2.57, y + 0.31))
    for start, end in ((0.95, 1.38), (2.05, 2.5), (3.15, 3.58)):
        _arrow(left, (2.4, start), (2.4, end))
    left.text(2.4, 2.82, "⋮", ha="center", va="center", fontsize=16)
    left.text(2.4, 4.6, "12 layers, each with weights of its own", ha="center", fontsize=9)
    _box(right, 0.5, 2.6, 1.8, "attention", BLUE)
    _box(right, 2.7, 2.6, 1.8, "memories", ORANGE)
    right.text(2.5, 2.91, "+", ha="center", va="center", fontsize=12)
    right.text(2.5, 2.2, "one energy of all tokens", ha="center", fontsize=9)
    _box(right, 0.9, 0.7, 3.2, "every token takes a step downhill", GRAY)
    _arrow(right, (4.2, 1.0), (4.6, 2.9), 0.5)
    _arrow(right, (0.45, 2.9), (0.8, 1.0), 0.5)
    right.text(2.5, 4.6, "one block, the same weights at each of 12 steps", ha="center", fontsize=9)
    return figure


def _on_the_circle(angle: torch.Tensor) -> torch.Tensor:
    """Tokens of width 3 after a layer norm: they have mean 0 and length √3, and so lie on a circle."""
    first = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64) / math.sqrt(2)
    second = torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64) / math.sqrt(6)
    return math.sqrt(3) * (angle.cos()[..., None] * first + angle.sin()[..., None] * second)


def _angle(g: torch.Tensor) -> torch.Tensor:
    axes = _on_the_circle(torch.tensor([0.0, math.pi / 2], dtype=torch.float64)) / 3
    return torch.atan2(g @ axes[1], g @ axes[0])


def landscape() -> Figure:
    """Tokens of width 3 roll down the energy of four memories, computed by the package."""
    memories = torch.tensor([-2.4, -0.9, 0.4, 2.2], dtype=torch.float64)
    term = SoftmaxModernHopfield(3, 4, beta=2.5, learnable_beta=False).double()
    norm = EnergyLayerNorm(3).double()
    with torch.no_grad():
        term.W.copy_(_on_the_circle(memories).T)
        block = EnergyBlock({"memories": term}, norm, Update(0.3))
        starts = torch.tensor([-3.0, -1.7, -0.3, 1.15, 1.45, 2.95], dtype=torch.float64)
        descent = block(_on_the_circle(starts), num_steps=12, record=Record(states=range(13)))
        paths = torch.stack([norm(state) for state in descent.states])
        angles = torch.linspace(-math.pi, math.pi, 400, dtype=torch.float64)
        energy = term.token_energies(_on_the_circle(angles)[None])[0]
        heights = term.token_energies(paths)
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(angles, energy, color=GRAY)
    bottom = energy.min() - 0.06
    axes.scatter(memories, bottom.expand(4), marker="^", color=ORANGE, s=70, label="a memory", zorder=3)
    for token in range(len(starts)):
        label = "a token, lighter to darker at each step" if token == 0 else None
        steps = torch.linspace(0.25, 1.0, 13)
        colors = [(0.17, 0.42, 0.69, share.item()) for share in steps]
        axes.scatter(_angle(paths[:, token]), heights[:, token], color=colors, s=34, zorder=4, label=label)
    axes.set(xlabel="direction of a token, in radians", ylabel="energy", xlim=(-math.pi, math.pi))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.17), ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def of_the_demo() -> dict[str, Picture]:
    """What there is to see in the model that comes with the package, on crops that were held out of its training."""
    model, processor = load_for_inspection(demo_checkpoint())
    crops = normalize(demo_images("validation", 16, processor, seed=3), processor)
    mask = random_masks(model, crops)
    record = record_descent(model, processor, crops, mask, attentions=True)
    shown = [9, 12, 1]
    result = reconstruct(model, processor, crops[shown], mask[shown])
    training = normalize(demo_images("train", 512, processor), processor)
    return {
        "descent": descent_figure(result),
        "token_energies": token_energy_figure(result),
        "attention": attention_figure(record, image=1),
        "memories": memory_figure(model, processor, training),
    }


if __name__ == "__main__":
    for name, figure in {"one_block": one_block(), "landscape": landscape(), **of_the_demo()}.items():
        figure.savefig(FOLDER / f"{name}.png", dpi=150)
