"""Train or fine-tune an image classifier: accelerate launch scripts/train_image_classification.py [--option value]"""

from pathlib import Path

from energy_transformer.utils.command_line import run_script


def main(argv: list[str]) -> None:
    from energy_transformer.training.image_classification_arguments import ImageClassificationArguments
    from energy_transformer.training.parsing import parse_arguments

    # tells a mistake before the slow import
    args = parse_arguments(argv, None, ImageClassificationArguments, __doc__)
    from energy_transformer.training.image_classification import ImageClassificationTraining

    training = ImageClassificationTraining(args)
    results = training.run()
    if training.accelerator.is_main_process:
        print(f"model:    {args.output_dir}")
        print(f"pictures: {Path(args.output_dir) / 'samples'}")
        print(f"held-out accuracy over {results['eval_samples']} images:")
        print(f"  model                        {results['eval_accuracy']:.4f}")
        print(f"  majority label               {results['eval_majority_accuracy']:.4f}")
        if "eval_pixel_probe_accuracy" in results:
            print(f"  linear classifier of pixels  {results['eval_pixel_probe_accuracy']:.4f}")


if __name__ == "__main__":
    run_script(main)
