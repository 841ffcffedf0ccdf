"""Registers the models with transformers' Auto classes, without importing them before they are wanted.

Importing a transformers model takes seconds. So the registration waits until the module of the Auto classes itself
is imported, and then runs right after it.
"""

import importlib
import importlib.abc
import sys

_AUTO_CONFIG = "transformers.models.auto.configuration_auto"
_AUTO_MODELS = "transformers.models.auto.modeling_auto"
_OUR_MODELS = f"{__package__}.modeling_energy_transformer"


def _register_config() -> None:
    config = importlib.import_module(f"{__package__}.configuration_energy_transformer").EnergyTransformerConfig
    sys.modules[_AUTO_CONFIG].AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models() -> None:
    if _AUTO_MODELS not in sys.modules:
        return
    ours = importlib.import_module(_OUR_MODELS)
    if not hasattr(ours, "__all__"):
        return  # still being imported: it imports the Auto classes itself, and is followed by this function again
    auto = sys.modules[_AUTO_MODELS]
    config = ours.EnergyTransformerConfig
    auto.AutoModel.register(config, ours.EnergyTransformerModel, exist_ok=True)
    for head in (auto.AutoModelForMaskedImageModeling, auto.AutoModelForPreTraining):
        head.register(config, ours.EnergyTransformerForMaskedImageModeling, exist_ok=True)
    auto.AutoModelForImageClassification.register(config, ours.EnergyTransformerForImageClassification, exist_ok=True)


_AFTER_IMPORT_OF = {
    _AUTO_CONFIG: _register_config,
    _AUTO_MODELS: _register_models,
    _OUR_MODELS: _register_models,
}


class _RegisteringFinder(importlib.abc.MetaPathFinder):
    """Lets the other finders find these modules and adds the registration to the end of their execution."""

    def find_spec(self, fullname, path, target=None):
        if fullname not in _AFTER_IMPORT_OF:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader.exec_module = _then(spec.loader.exec_module, _AFTER_IMPORT_OF[fullname])
                return spec
        return None


def _then(exec_module, register):
    def exec_and_register(module):
        exec_module(module)
        register()

    return exec_and_register


def register_auto_classes() -> None:
    """Register now with what transformers has imported already, and with the rest as soon as it is imported."""
    sys.meta_path.insert(0, _RegisteringFinder())
    for name, register in _AFTER_IMPORT_OF.items():
        if name in sys.modules:
            register()
