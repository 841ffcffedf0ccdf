# %% [markdown]
# # The energy falls and the tokens settle
#
# An Energy Transformer has one block, applied again and again: each step moves the tokens x against the gradient of an
# energy of the normalized tokens g = norm(x). Here a block of the paper's size, with random weights, goes down its
# energy for 150 steps, written out with the parts of the package.
#
# Run it with `python docs/tutorial.py [FOLDER]` (about 10 seconds), or cell by cell; the plots go to FOLDER.

# %%
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

from energy_transformer import BaseModernHopfield, EnergyAttention, EnergyLayerNorm

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images"
NUM_TOKENS, DIM, STEPS, STEP_SIZE = 11, 768, 150, 0.1

# %% [markdown]
# The parts: a layer norm with a scalar gain, an attention without values (12 heads of width 64), and a Hopfield network
# of 3072 memories. Both energies are functions of g; `grad(g)` is their gradient in closed form.

# %%
torch.manual_seed(0)
norm = EnergyLayerNorm(DIM).double()
attention = EnergyAttention(DIM, n_heads=12, head_dim=64, scale=DIM**-0.5, learnable_beta=False).double()
hopfield = BaseModernHopfield(DIM, hidden_dim=3072, scale=0.02, learnable_beta=False).double()
x = torch.randn(NUM_TOKENS, DIM, dtype=torch.float64)

# %% [markdown]
# The closed form is the gradient: automatic differentiation of the energy gives the same numbers.

# %%
g = norm(x).detach().requires_grad_()
energy = attention.energy(g) + hopfield.energy(g)
(automatic,) = torch.autograd.grad(energy, g)
gradient_error = ((attention.grad(g) + hopfield.grad(g) - automatic).norm() / automatic.norm()).item()
print(f"closed form and automatic differentiation differ by {gradient_error:.0e} of the gradient")

# %% [markdown]
# The descent, and what there is to see of it at every step: the two energies; how far the normalized tokens still
# move; how long the tokens are; and how much of a step lies along the token itself.

# %%
trace: dict[str, list[float]] = {"attention": [], "hopfield": [], "moved": [], "length": [], "along": []}
with torch.no_grad():
    g = norm(x)
    for _ in range(STEPS + 1):
        step = -STEP_SIZE * (attention.grad(g) + hopfield.grad(g))
        trace["attention"].append(attention.energy(g).item())
        trace["hopfield"].append(hopfield.energy(g).item())
        trace["length"].append(x.norm(dim=-1).mean().item())
        centered_step, centered_x = step - step.mean(-1, keepdim=True), x - x.mean(-1, keepdim=True)
        trace["along"].append(torch.cosine_similarity(centered_step, centered_x, dim=-1).mean().item())
        x = x + step
        previous, g = g, norm(x)
        trace["moved"].append(((g - previous).norm(dim=-1) / previous.norm(dim=-1)).max().item())
energies = torch.tensor(trace["attention"]) + torch.tensor(trace["hopfield"])
falls = int((energies.diff() < 0).sum())
print(f"energy: {energies[0]:.0f} to {energies[-1]:.0f}, lower after {falls} of the {STEPS} steps")

# %% [markdown]
# The energy falls at every step. In small steps it changes at the rate −(∂E/∂g)ᵀ (∂g/∂x) (∂E/∂g). The layer norm is the
# gradient of a convex function of x as long as its gain γ is a positive number, so the matrix ∂g/∂x is symmetric and
# has no negative eigenvalue, and the rate is never positive. `torch.nn.LayerNorm`, with a gain for each channel, has no
# such matrix, and no such guarantee. It is the sum that falls: its two parts may trade, as the Hopfield energy shows,
# which soon rises a little while the attention's falls on.

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
axes.plot(energies, color="black", label="energy")
axes.plot(trace["hopfield"], color="tab:blue", linestyle="--", label="of the Hopfield network")
axes.plot(trace["attention"], color="tab:orange", linestyle="--", label="of the attention")
axes.set(xlabel="step", ylabel="energy of the 11 tokens", title="The energy falls at every step")
axes.legend(loc="center right")
FOLDER.mkdir(parents=True, exist_ok=True)
figure.savefig(FOLDER / "tutorial_energy.png", dpi=120)

# %% [markdown]
# The tokens settle, and yet their length grows: the layer norm does not see the length of x, so nothing ever pulls it
# back. What is left of the gradient points more and more along x itself; a step then makes x longer and leaves g where
# it is. So the fixed point is one of the normalized tokens, which is what the energy and the decoder read.

# %%
figure, panels = plt.subplots(3, 1, figsize=(6.4, 6.4), sharex=True, layout="constrained")
panels[0].semilogy(trace["moved"], color="black")
panels[0].set(title="Normalized tokens move less and less", ylabel="|Δg| / |g|", ylim=(1e-4, 1))
panels[1].plot(trace["length"], color="black")
panels[1].set(title="Tokens grow", ylabel="|x|")
panels[2].plot(trace["along"], color="black")
panels[2].set(title="because the steps turn along them", ylabel="cosine of step, x", xlabel="step", ylim=(0, 1.02))
figure.savefig(FOLDER / "tutorial_tokens.png", dpi=120)
print(f"the last step moves the normalized tokens by {trace['moved'][-1]:.2%}, the first by {trace['moved'][0]:.2%}")
print(f"mean length of a token: {trace['length'][0]:.0f} to {trace['length'][-1]:.0f}")
print(f"cosine of step and token: {trace['along'][0]:.2f} to {trace['along'][-1]:.3f}")
print(f"plots: {FOLDER / 'tutorial_energy.png'}, {FOLDER / 'tutorial_tokens.png'}")
