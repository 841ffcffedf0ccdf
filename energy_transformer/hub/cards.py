"""The model card of a finished run, filled from what the run left in its folder."""

import json
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants
from transformers import AutoConfig, PreTrainedConfig

from ..utils.errors import UserError
from ..utils.files import LOCAL_PATH, atomic_path
from .loading import split_revision
from .tasks import LEAST_ERROR, TASKS, Task

TEMPLATE = Path(__file__).with_name("model_card_template.md")
LICENSE = "apache-2.0"
_ANY_REPO = "USER/REPO"
_TAGS = ["energy-transformer", "hopfield-network", "associative-memory"]
_RECIPE = (
    "train_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "min_learning_rate", "warmup_ratio", "num_warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
    "max_grad_norm", "ema_decay", "layer_decay", "label_smoothing", "mixup_alpha", "cutmix_alpha", "freeze_backbone",
    "mixed_precision", "seed",
)  # fmt: skip
_KINDS = {
    "scatter": "scattered over the image",
    "block": "in blocks",
    "scatter_or_block": "scattered over the image or in blocks",
}
_CAPTIONS = {
    "graph_descent": "Held-out graphs: energy of the nodes along the descent, and attention along the edges",
    "reconstructions": "Held-out images, masked, reconstructed, and the baselines",
    "confusion_matrix": "Confusion matrix of the held-out images",
    "energy": "Energy of held-out images and its parts along the descent, relative to the start",
    "token_energies": "Energy of each patch along the descent: bright is high, dark has settled",
    "descent": "Hidden patches as decoded at the steps of the descent",
}


def card_metadata(task: Task | None, **fields) -> ModelCardData:
    """Metadata of a card; `task` is None for what is no transformers model."""
    return ModelCardData(
        library_name="transformers" if task else "energy-transformer",
        pipeline_tag=task.pipeline_tag if task else None,
        tags=[*_TAGS, *([task.task_name.lower().replace(" ", "-")] if task else [])],
        **fields,
    )


def loading_lines(task: Task, name: str) -> str:
    """Python that opens a checkpoint where the package is not installed."""
    return (
        f"from transformers import {task.auto_class}\n\n"
        f'model = {task.auto_class}.from_pretrained("{name}", trust_remote_code=True)'
    )


def write_card(folder: str | Path, repo_id: str | None = None, license: str = LICENSE) -> Path:
    """Write [`model_card`] as `README.md` into the folder, under a temporary name first."""
    path = Path(folder) / "README.md"
    with atomic_path(path) as temporary:
        model_card(folder, repo_id, license).save(temporary)
    return path


def load_card(path: Path) -> ModelCard:
    """Raises:
    UserError: when the metadata at its top is not what the Hub takes.
    """
    try:
        return ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: its metadata is not that of a card: {' '.join(str(error).split())}") from error


def address_card(folder: str | Path, repo_id: str) -> None:
    """Write the card if there is none; name the repository in one that was written before it was known.

    Any other card, such as one that somebody edited, stays as it is.
    """
    path = Path(folder) / "README.md"
    if not path.exists():
        write_card(folder, repo_id)
        return
    card = load_card(path)
    if _ANY_REPO in str(card) and str(card) == str(model_card(folder, None, card.data.license)):
        write_card(folder, repo_id, card.data.license)


def model_card(folder: str | Path, repo_id: str | None = None, license: str = LICENSE) -> ModelCard:
    """The card of a finished run: data, recipe, hardware, results beside the baselines, pictures, use and limits.

    Args:
        folder: the `output_dir` of the run, with `config.json`, `all_results.json` and `samples/`.
        repo_id: the repository that it goes to, named where the card says how to load the model.
        license: of the weights, as the Hub writes it.

    Raises:
        UserError: when the folder is not that of a finished run.
    """
    folder = Path(folder)
    try:
        run = json.loads((folder / "all_results.json").read_text())
        config = AutoConfig.from_pretrained(folder)
        task = TASKS[(config.architectures or [""])[0]]
        arguments, results = run["arguments"], _results(task, run, config)
        data, hardware = _data(arguments, task), _hardware(run, task)
        limits = [*_limits(data, run, config, task), *task.limits]
        parameters = f"{run['num_parameters']:,}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not the folder of a finished run: {_reason(error)}") from error
    name = (repo_id or folder.resolve().name).split("/")[-1]
    metadata = card_metadata(
        task,
        license=license,
        datasets=[data["hub_id"]] if data["hub_id"] else None,
        base_model=_on_the_hub(arguments.get("model_name_or_path")),
        model_name=name,
        metrics=[task.metric],
        eval_results=[_eval_result(task, run, data)] if run[task.result] is not None else None,
    )
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        title=name,
        parameters=parameters,
        purpose=task.purpose,
        steps=_steps(config),
        pictures=_pictures(folder / "samples"),
        usage_without_package=_usage(task, config, repo_id or _ANY_REPO),
        usage_with_package=_usage_with_package(task, repo_id or _ANY_REPO),
        results=results,
        data=data,
        base_model=_on_the_hub(arguments.get("model_name_or_path")),
        recipe={name: value for name in _RECIPE if (value := {**arguments, **run}.get(name)) is not None},
        overridden=[_overridden(entry) for entry in run.get("overridden_options", [])],
        hardware=hardware,
        limits=limits,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"it has no {Path(error.filename).name}"
    if isinstance(error, KeyError):
        return f"its all_results.json or config.json lacks what this package writes, {error.args[0]}"
    return str(error).strip().splitlines()[0]


def _data(arguments: dict, task: Task) -> dict:
    """Name, and where it is one of the Hub's, identifier and address of the dataset. Local paths stay unnamed."""
    name = arguments["dataset_name"]
    if task.unit != "images":
        return _graph_data(arguments)
    if arguments.get("train_dir") or name == LOCAL_PATH or Path(name).exists():
        return {"name": "a local folder of images", "type": "imagefolder", "hub_id": None, "url": None}
    if name == "demo":
        photographs = "crops of the photographs that come with scikit-image"
        return {"name": photographs, "type": "scikit-image-photographs", "hub_id": None, "url": None}
    return {"name": name, "type": name, "hub_id": name, "url": f"{constants.ENDPOINT}/datasets/{name}"}


def _graph_data(arguments: dict) -> dict:
    name, local = arguments["dataset_name"], arguments.get("train_dir")
    names = {"mutag": "MUTAG, 188 molecules", "mutag_anomalies": "MUTAG with anomalies put in on purpose"}
    shown = "a local folder of graphs" if local else names.get(name, name)
    return {"name": shown, "type": "graphs" if local else name, "hub_id": None, "url": None}


def _steps(config: PreTrainedConfig) -> int:
    steps = config.num_steps
    return steps * config.num_hidden_layers if isinstance(steps, int) else sum(steps)


def _on_the_hub(name: str | None) -> str | None:
    """The repository among what `model_name_or_path` may be: that, with or without a revision, or a local folder."""
    repo_id, _ = split_revision(name or "")
    return repo_id if repo_id.count("/") == 1 and not Path(repo_id).exists() else None


def _eval_result(task: Task, run: dict, data: dict) -> EvalResult:
    return EvalResult(
        task_type=task.task_type,
        task_name=task.task_name,
        dataset_type=data["type"],
        dataset_name=data["name"],
        metric_type=task.metric,
        metric_name=task.metric_name,
        metric_value=float(f"{run[task.result]:.5g}"),
    )


def _results(task: Task, run: dict, config: PreTrainedConfig) -> dict:
    rows = [{"name": "**this model**", "value": f"**{_number(run[task.result])}**"}]
    rows += [{"name": name, "value": _number(run[key])} for key, name in task.baselines.items() if key in run]
    note = ""
    if task.metric == "mse":
        ratios = " and ".join(
            f"{run[task.result] / run[key]:.3f} times that of the {name}"
            for key, name in task.baselines.items()
            if run[task.result] is not None and run[key] > LEAST_ERROR
        )
        note = f"{config.mask_ratio:.0%} of the patches are hidden, {_KINDS[config.mask_type]}."
        if ratios:
            note += f" The model's error is {ratios}."
        if config.norm_pix_loss:
            note += (
                " The model predicts each patch without its mean and contrast (`norm_pix_loss`): for these figures and "
                "the pictures, those of the hidden patches were estimated from the visible ones."
            )
    if task.unit == "graphs":
        note = "One held-out part of a small data set says little: see the cross-validation in benchmarks/GRAPHS.md."
    heading, count = task.metric_name, run["eval_samples"]
    return {"heading": heading, "count": count, "unit": task.unit, "rows": rows, "note": note}


def _overridden(entry: dict) -> str:
    changes = ", ".join(f"`{name}` was {old}, then {new}" for name, (old, new) in entry["options"].items())
    return f"at step {entry['step']}: {changes}"


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4g}"


def _pictures(folder: Path) -> list[dict[str, str]]:
    found = [name for name in _CAPTIONS if (folder / f"{name}.png").is_file()]
    return [{"path": f"{folder.name}/{name}.png", "caption": _CAPTIONS[name]} for name in found]


def _usage(task: Task, config: PreTrainedConfig, name: str) -> str:
    if task.unit != "images":
        return _graph_usage(config, loading_lines(task, name))
    height, width = config.image_height_width
    shape = f"1, {config.num_channels}, {height}, {width}"
    lines = [
        "import torch",
        loading_lines(task, name),
        f"pixel_values = torch.rand({shape}) * 2 - 1  # an image, normalized as preprocessor_config.json says",
    ]
    if task.metric == "mse":
        units = ", patches without their mean and contrast" if config.norm_pix_loss else ""
        lines += [
            f"mask = torch.rand(1, {config.grid_size[0] * config.grid_size[1]}) < 0.5  # True for the patches to hide",
            "outputs = model(pixel_values, bool_masked_pos=mask, output_energies=True)",
            f"outputs.reconstruction, outputs.energies  # ({shape}){units}, (1, steps + 1)",
        ]
    else:
        lines += ["logits = model(pixel_values).logits", "model.config.id2label[logits.argmax(-1).item()]"]
    return "\n".join(lines)


def _graph_usage(config: PreTrainedConfig, loading: str) -> str:
    """A path of three nodes, as the model takes it."""
    edges, positions = config.num_edge_features, config.num_position_features
    given = f", edge_attr=torch.randn(4, {edges})" * bool(edges) + f", positions=torch.randn(3, {positions})" * bool(
        positions
    )
    return (
        f"import torch\n{loading}\n"
        f"x = torch.randn(3, {config.num_node_features})  # features of three nodes, in the order of the data set\n"
        "edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])  # a path, each edge in both directions\n"
        f"outputs = model(x, edge_index{given}, output_energies=True)\n"
        "outputs.logits, outputs.energies"
    )


def _graph_usage_with_package(task: Task, name: str) -> str:
    return (
        "import energy_transformer\n"
        "from energy_transformer.graphs.datasets import load_graphs, with_positions\n"
        "from energy_transformer.training.graph_evaluation import inputs_of\n"
        f"from transformers import {task.auto_class}\n\n"
        f'model = {task.auto_class}.from_pretrained("{name}").eval()\n'
        'graph = with_positions(load_graphs("mutag")[0], model.config.num_position_features)\n'
        "model(**inputs_of(graph)).logits"
    )


def _usage_with_package(task: Task, name: str) -> str:
    if task.unit != "images":
        return _graph_usage_with_package(task, name)
    if task.metric == "mse":
        return (
            "from energy_transformer.inspection import load_for_reconstruction, prepare_image, reconstruct\n\n"
            f'model, processor = load_for_reconstruction("{name}")\n'
            'pixel_values, mask = prepare_image("photo.jpg", model, processor)\n'
            "result = reconstruct(model, processor, pixel_values, mask)\n"
            "result.prediction, result.frames, result.energies  # the result, each state on the way, their energies"
        )
    return (
        "import energy_transformer\n"
        "from energy_transformer.data.image_processing import load_image_processor\n"
        "from transformers import pipeline\n\n"
        f'processor = load_image_processor("{name}")\n'
        f'classify = pipeline("image-classification", model="{name}", image_processor=processor)\n'
        'classify("photo.jpg")'
    )


def _hardware(run: dict, task: Task) -> str:
    processes, samples = run["num_processes"], "images" if task.unit == "images" else "graphs"
    device = run.get("device_name") or run["device"]
    resumed = f" after it was resumed at step {run['train_first_step']}" if run.get("train_first_step") else ""
    return (
        f"{processes} process{'es' if processes > 1 else ''} on {device}, {run['train_seconds']:.0f} s of training"
        f"{resumed} ({run['train_samples_per_second']:.0f} {samples} a second), torch {run['torch']}, "
        f"transformers {run['transformers']}"
    )


def _limits(data: dict, run: dict, config: PreTrainedConfig, task: Task) -> list[str]:
    count = f"{run['train_samples']:,} " if run.get("train_samples") else ""
    source = "others" if run["arguments"].get("validation_dir") else "from the same source"
    size, other = "", "other graphs"
    if task.unit == "images":
        size, other = "of {}×{} pixels ".format(*config.image_height_width), "other images or at other sizes"
    limits = [
        f"It was trained on {count}{'images' if size else 'graphs'} {size}and measured on {run['eval_samples']:,} "
        f"{task.unit if task.unit == 'nodes' else ''}{' ' * (task.unit == 'nodes')}{source}: nothing is known of its "
        f"error on {other}.",
        "It was not examined for bias, nor for any use in which an error does harm.",
    ]
    if run["arguments"].get("freeze_backbone"):
        limits.insert(
            0,
            "It is a linear probe: the backbone was not trained for these classes. Its accuracy tells what a linear "
            "layer reads from the standardized features, not what fine-tuning would reach.",
        )
    if data["type"] == "scikit-image-photographs":
        limits.insert(0, "A demonstration: crops of eight photographs teach no more than local colors and edges.")
    return limits
