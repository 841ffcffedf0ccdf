"""Train a masked-image Energy Transformer: accelerate launch scripts/train_masked_image_modeling.py [--option value]"""

from pathlib import Path

from energy_transformer.utils.command_line import run_script


def main(argv: list[str]) -> None:
    from energy_transformer.training.masked_image_modeling_arguments import MaskedImageModelingArguments
    from energy_transformer.training.parsing import parse_arguments

    # a mistake is told before the slow import
    args = parse_arguments(argv, None, MaskedImageModelingArguments, __doc__)
    from energy_transformer.training.masked_image_modeling import MaskedImageModelingTraining

    training = MaskedImageModelingTraining(args)
    results = training.run()
    if training.accelerator.is_main_process:
        print(f"model:    {args.output_dir}")
        print(f"pictures: {Path(args.output_dir) / 'samples'}")
        print(
            f"training: {results['train_steps']} steps, {results['train_samples_per_second']:.0f} images/s, "
            f"{results['train_data_wait_share']:.1%} of the time waiting for data"
        )
        print("held-out mean squared error over the hidden pixels, in units of [0, 1]:")
        print(f"  model             {results['eval_masked_mse']:.5f}")
        print(f"  mean color        {results['eval_mean_color_mse']:.5f}")
        print(f"  neighbor average  {results['eval_neighbor_average_mse']:.5f}")
        print(f"  model / mean color: {results['eval_ratio_to_mean_color']:.3f}")


if __name__ == "__main__":
    run_script(main)
