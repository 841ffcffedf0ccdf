"""Points the clients of this process to a server."""

import os
from pathlib import Path

import datasets
import huggingface_hub
import transformers.dynamic_module_utils
import transformers.utils.hub
from huggingface_hub import constants, hf_api

from .server import HubServer


def point_clients(monkeypatch, server: HubServer, home: Path, token: str | None = None) -> None:
    """Let huggingface_hub, transformers and datasets of this process, and of its children, speak to the server.

    They read the environment once, when they are imported; so what they read then is set again here.
    """
    environment = server.environment(home, token)
    for name in os.environ.keys() - environment.keys():
        monkeypatch.delenv(name)
    for name in environment:
        monkeypatch.setenv(name, environment[name])
    url, cache = server.url, str(home / "hub")
    values = {
        constants: {
            "ENDPOINT": url,
            "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": cache,
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_OFFLINE": False,
        },
        hf_api.api: {"endpoint": url},
        transformers.utils.hub: {"HF_MODULES_CACHE": str(home / "modules"), "_hf_api": None},
        transformers.dynamic_module_utils: {"HF_MODULES_CACHE": str(home / "modules")},
        datasets.config: {
            "HF_ENDPOINT": url,
            "HUB_DATASETS_URL": url + "/datasets/{repo_id}/resolve/{revision}/{path}",
            "HF_HUB_OFFLINE": False,
            "HF_DATASETS_CACHE": home / "datasets",
            "HF_MODULES_CACHE": home / "modules",
            "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
        },
    }
    for holder, settings in values.items():
        for name, value in settings.items():
            monkeypatch.setattr(holder, name, value)
    huggingface_hub.close_session()
