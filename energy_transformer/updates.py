"""What a step of the descent does with the pull, −∂E/∂g or −∂E/∂x, of the energy on the tokens.

Shapes: B any leading axes, N tokens, D token width, T steps. Which updates lower the energy, and why:
`docs/guarantees.md`.
"""

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


class Update(nn.Module):
    """Plain descent x ← x + α pull (Hoover et al. 2023, arXiv 2302.07253, equation 7).

    A subclass may keep tensors between the steps, in the state that `init` makes. One that belongs to the images has as
    many axes as x, and the images first. `step` changes none of them in place: it returns new ones.

    Args:
        step_size: α.
    """

    def __init__(self, step_size: float):
        super().__init__()
        self.step_size = step_size

    def init(self, x: Tensor) -> State:
        """The state before the first step from x (B, N, D)."""
        return {}

    def prepare(self, x: Tensor, state: State, t: int, generator: torch.Generator | None) -> State:
        """The state for step t, which counts from 0: all that depends on t, and the random numbers of the step.

        It runs outside of what gradient checkpointing computes again and of what a compiler computes with one graph
        for all steps.
        """
        return state

    def step(self, x: Tensor, g: Tensor, pull: Tensor, state: State) -> tuple[Tensor, State]:
        """The next tokens, and what changes of the state; x, g = norm(x) and the pull are (B, N, D)."""
        return torch.add(x, pull, alpha=self.step_size), {}


class NormalizedUpdate(Update):
    """x ← g + α pull: the step leads away from the normalized tokens, as in
    `zhuergou/Energy-Transformer-for-Graph-Anomaly-Detection`."""

    def step(self, x: Tensor, g: Tensor, pull: Tensor, state: State) -> tuple[Tensor, State]:
        return torch.add(g, pull, alpha=self.step_size), {}


class FlexibleUpdate(Update):
    r"""Descent with learned step sizes, momentum and noise, in any combination.

    $$v \leftarrow \mu v + \text{pull}, \qquad x \leftarrow x + \alpha_t \circ v + \sqrt{2 \alpha_t \tau}\, \xi$$

    With momentum alone it is the heavy ball (Polyak 1964), with noise alone Langevin dynamics at temperature τ.

    Args:
        step_size: α, or where the learned step sizes begin.
        num_steps: T, of the learned step sizes; a longer descent goes on with the last one.
        learnable: `"step"` for an α of each step, a parameter of shape (T,), `"channel"` for one of each step and
            channel, (T, D), False for none.
        dim: D, needed for `"channel"`.
        momentum: μ, at least 0 and below 1.
        temperature: τ, at least 0. Its noise ξ is standard normal, drawn from the context's generator.
        noise_in_evaluation: False leaves the noise out in evaluation mode.
    """

    def __init__(
        self,
        step_size: float,
        num_steps: int = 1,
        learnable: bool | str = False,
        dim: int | None = None,
        momentum: float = 0.0,
        temperature: float = 0.0,
        noise_in_evaluation: bool = True,
    ):
        super().__init__(step_size)
        if learnable:
            shape = (num_steps, dim) if learnable == "channel" else (num_steps,)
            self.step_size = nn.Parameter(torch.full(shape, float(step_size)))
        self.momentum = momentum
        self.temperature = temperature
        self.noise_in_evaluation = noise_in_evaluation

    def init(self, x: Tensor) -> State:
        return {"velocity": torch.zeros_like(x)} if self.momentum else {}

    def prepare(self, x: Tensor, state: State, t: int, generator: torch.Generator | None) -> State:
        if isinstance(self.step_size, Tensor):
            state = state | {"size": self.step_size[min(t, len(self.step_size) - 1)]}
        if self.temperature and (self.training or self.noise_in_evaluation):
            if generator is None:
                noise = torch.randn_like(x)
            else:
                noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
            state = state | {"noise": noise.to(x.device)}
        return state

    def step(self, x: Tensor, g: Tensor, pull: Tensor, state: State) -> tuple[Tensor, State]:
        size, pull, changes = state.get("size", self.step_size), pull.to(x.dtype), {}
        if self.momentum:
            pull = changes["velocity"] = self.momentum * state["velocity"] + pull
        x = x + size * pull
        if "noise" in state:
            variance = 2 * self.temperature * size
            deviation = variance.abs().clamp(min=1e-12).sqrt() if isinstance(variance, Tensor) else variance**0.5
            x = x + deviation * state["noise"]
        return x, changes
