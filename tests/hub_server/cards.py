"""The metadata of a card, as the Hub checks and shows it."""

import re

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from .repositories import Commit

_METADATA = re.compile(r"^---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
LICENSES = ("apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "mit", "other", "unknown")
PIPELINE_TAGS = ("feature-extraction", "image-classification", "image-feature-extraction", "image-to-image", "other")
_LISTS = ("tags", "datasets", "metrics", "language", "base_model")


def read_metadata(card: str) -> dict:
    """Raises `ValueError` when it is no YAML or no mapping."""
    match = _METADATA.match(card)
    if match is None:
        return {}
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(f"YAML metadata error: {error}") from error
    if not isinstance(metadata or {}, dict):
        raise ValueError("YAML metadata must be a mapping")
    return metadata or {}


def check_card(card: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about the metadata of a card."""
    try:
        metadata = read_metadata(card)
    except ValueError as error:
        return [str(error)], []
    if not metadata:
        return [], ["empty or missing yaml metadata in repo card"]
    errors, warnings = [], []
    if metadata.get("license", "other") not in LICENSES:
        errors.append(f'"license" must be one of [{", ".join(LICENSES)}]')
    for name in _LISTS:
        value = metadata.get(name, [])
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            errors.append(f'"{name}" must be a string or a list of strings')
    if metadata.get("pipeline_tag", "other") not in PIPELINE_TAGS:
        warnings.append(f'The pipeline tag "{metadata["pipeline_tag"]}" is not in the official list')
    if "model-index" in metadata:
        try:
            model_index_to_eval_results(metadata["model-index"])
        except (KeyError, TypeError, AttributeError) as error:
            errors.append(f'"model-index" is malformed: {error!r}')
    return errors, warnings


def describe(commit: Commit) -> dict:
    """What the pages of models and datasets show of the card; nothing for a card that cannot be read."""
    if "README.md" not in commit.files:
        return {}
    try:
        metadata = read_metadata(commit.files["README.md"].content.decode())
    except ValueError:
        return {}
    tags = metadata.get("tags") or []
    shown = {"cardData": metadata, "tags": tags if isinstance(tags, list) else [tags]}
    return shown | {name: metadata[name] for name in ("pipeline_tag", "library_name") if name in metadata}
