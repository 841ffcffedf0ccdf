"""What a training step of node classification takes along the edges of a large random graph.

python benchmarks/large_graphs.py [--nodes 100000] [--edges 250000 500000 1000000] [--device cpu] prints a table: the
most that the tensors of a step hold at once, above the model and the graph, and its seconds, for D 64, H 4 and T 4; on
a CPU on one thread.
"""

import argparse

import torch
from measure import machine_name, peak_bytes, seconds

from energy_transformer import EnergyTransformerForNodeClassification, EnergyTransformerGraphConfig


def model_of(device: torch.device) -> EnergyTransformerForNodeClassification:
    torch.manual_seed(0)
    config = EnergyTransformerGraphConfig(
        num_node_features=32, hidden_size=64, num_attention_heads=4, head_dim=16, intermediate_size=256,
        num_hidden_layers=1, num_steps=4, use_cls_token=False,
    )  # fmt: skip
    return EnergyTransformerForNodeClassification(config).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100_000, help="Nodes of the graph (default: 100000).")
    parser.add_argument(
        "--edges", type=int, nargs="+", default=[250_000, 500_000, 1_000_000], help="Numbers of directed edges."
    )
    parser.add_argument("--device", default="cpu", help="Of torch (default: cpu).")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    model = model_of(device)
    x, labels = torch.randn(args.nodes, 32, device=device), torch.randint(2, (args.nodes,), device=device)
    print(f"{machine_name(device)}, {args.nodes:,} nodes\n\n| edges | peak | seconds |\n| ---: | ---: | ---: |")
    for edges in args.edges:
        index = torch.randint(args.nodes, (2, edges), device=device)

        def step(index: torch.Tensor = index) -> None:
            model.zero_grad()
            model(x, index, labels=labels).loss.backward()

        peak = peak_bytes(step, device)
        print(f"| {edges:,} | {peak / 2**30:.2f} GiB | {seconds(step, device):.2f} |", flush=True)


if __name__ == "__main__":
    main()
