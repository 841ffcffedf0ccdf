"""The attention along edges is the attention over masked pairs, in every derivative, and holds no matrix of either."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from energy_transformer import Edges, EnergyAttention, EnergyContext
from energy_transformer.sparse_attention import EdgeProducts, EdgeSums

DIM, HEADS, WIDTH, COUNT = 6, 3, 4, 9


def parts(seed, **options):
    """An attention, tokens with a gradient, and the same pairs as a mask with a bias and as a list of edges."""
    torch.manual_seed(seed)
    attention = EnergyAttention(DIM, HEADS, head_dim=WIDTH, scale=1.0, use_bias=True, **options).double()
    g = torch.randn(COUNT, DIM, dtype=torch.float64, requires_grad=True)
    pairs = torch.rand(COUNT, COUNT) < 0.4
    pairs[2], pairs[4, 4] = False, True  # no edge leads to token 2, and one from token 4 to itself
    bias = torch.randn(HEADS, COUNT, COUNT, dtype=torch.float64, requires_grad=True)
    queries, keys = pairs.nonzero().T
    edges = Edges(torch.stack([keys, queries]), bias[:, queries, keys].T)
    return attention, g, bias, EnergyContext(pairs=pairs, bias=bias, backend="eager"), EnergyContext(edges=edges)


@pytest.mark.parametrize(
    "options", [{"beta": 0.7}, {"beta": [0.3, 0.9, 1.4]}, {"qk_norm": True}, {"attend_to_self": False}], ids=str
)
def test_values_and_derivatives_are_those_of_the_masked_attention(options):
    attention, g, bias, dense, sparse = parts(0, **options)
    inputs = [g, bias, *attention.parameters()]
    results = []
    for context in (dense, sparse):
        context.check(g)
        energies, gradient = attention.token_energies(g, context), attention.grad(g, context)
        (automatic,) = torch.autograd.grad(energies.sum(), g, retain_graph=True)
        torch.testing.assert_close(gradient, automatic)
        second = torch.autograd.grad(gradient.sin().sum(), inputs, create_graph=True)
        third = torch.autograd.grad(sum(each.square().sum() for each in second), inputs)
        results.append([energies, gradient, *second, *third])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert energies[2] == 0


def test_the_two_operations_are_each_others_derivatives():
    torch.manual_seed(0)
    ends = torch.randint(5, (2, 11))
    a, b = (torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = torch.randn(11, 2, dtype=torch.float64, requires_grad=True)
    for function, inputs in ((EdgeProducts.apply, (a, b, *ends)), (EdgeSums.apply, (weights, a, *ends))):
        assert torch.autograd.gradcheck(function, inputs) and torch.autograd.gradgradcheck(function, inputs)


def test_transforms_of_torch():
    attention, g, _, dense, sparse = parts(1)
    of_edges = torch.func.grad(lambda g: attention.energy(g, sparse))(g)
    torch.testing.assert_close(of_edges, attention.grad(g, dense))
    many = torch.stack([g, g.flip(0)]).detach()
    together = torch.func.vmap(lambda g: attention.energy(g, sparse))(many)
    torch.testing.assert_close(together, torch.stack([attention.energy(each, sparse) for each in many]))


def test_parallel_edges_count_each():
    attention, g, _, _, sparse = parts(2)
    index, bias, _ = sparse.edges
    twice = Edges(torch.cat([index, index], 1), torch.cat([bias, bias]))
    shifted = attention.energy(g, EnergyContext(edges=Edges(index, bias + torch.log(torch.tensor(2.0)))))
    torch.testing.assert_close(attention.energy(g, EnergyContext(edges=twice)), shifted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    attention, g, _, _, sparse = parts(3)
    whole = attention.grad(g, sparse)
    half = attention.to(dtype).grad(g.to(dtype), sparse)
    assert half.dtype == dtype and (half - whole).abs().max() < 0.03 * whole.abs().max()


class Sizes(TorchDispatchMode):
    """What is made: the largest number of entries, and of long axes, of any tensor."""

    def __init__(self, long):
        super().__init__()
        self.long, self.entries, self.axes = long, 0, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
                self.axes = max(self.axes, sum(size >= self.long for size in tensor.shape))
        return result


def test_no_matrix_of_pairs_and_no_row_for_each_edge_is_ever_made():
    """Neither forward nor backward, nor for the energies."""
    torch.manual_seed(0)
    nodes, edges, dim = 500, 20_000, 16
    attention = EnergyAttention(dim, 2, head_dim=8)
    g = torch.randn(nodes, dim, requires_grad=True)
    index, bias = torch.randint(nodes, (2, edges)), torch.randn(edges, 2, requires_grad=True)
    with Sizes(nodes) as sizes:
        context = EnergyContext(edges=Edges(index, bias))
        gradient = attention.grad(g, context)
        (gradient.square().sum() + attention.energy(g, context)).backward()
    assert g.grad.abs().sum() > 0 and bias.grad.abs().sum() > 0
    assert sizes.axes == 1 and nodes * dim < sizes.entries < edges * dim
    with Sizes(nodes) as sizes:
        pairs = torch.zeros(nodes, nodes, dtype=torch.bool)
        pairs[index[1], index[0]] = True
        attention.grad(g, EnergyContext(pairs=pairs, backend="eager"))
    assert sizes.axes == 2  # what the first assertion would see


def test_mistakes():
    attention, g, bias, dense, sparse = parts(4)
    index = sparse.edges.index
    for context, tokens, message in [
        (sparse, g[None], "edges need tokens of shape"),
        (EnergyContext(edges=Edges(index.int())), g, "int64"),
        (EnergyContext(edges=Edges(index[0])), g, "shape"),
        (EnergyContext(edges=Edges(index, bias[0])), g, "bias of edges must have shape"),
        (EnergyContext(edges=Edges(index), pairs=dense.pairs), g, "cannot be combined"),
    ]:
        with pytest.raises(ValueError, match=message):
            context.check(tokens)
    with pytest.raises(ValueError, match="attention weights need pairs"):
        attention.attention_weights(attention.project(g), sparse, beta=1.0)
