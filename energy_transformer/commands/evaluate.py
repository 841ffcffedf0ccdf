"""Measure a masked-image model on kinds and ratios of masks, beside two baselines.

`accelerate launch` divides the images over several processes; the figures are the same.
"""

from pathlib import Path


def main(argv: list[str]) -> None:
    from ..training.checkpoint_evaluation_arguments import parse_evaluation_arguments

    checkpoint, args = parse_evaluation_arguments(argv, __doc__)  # reports a mistake before the slow import
    from accelerate import Accelerator

    from ..training.checkpoint_evaluation import evaluate_checkpoint, format_table, write_report

    accelerator = Accelerator(cpu=args.cpu)
    report = evaluate_checkpoint(checkpoint, args, accelerator)
    if accelerator.is_main_process:
        print(format_table(report))
        if args.output:
            write_report(report, Path(args.output))
            print(f"figures: {args.output}")
    accelerator.end_training()
