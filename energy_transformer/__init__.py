"""Energy Transformers (Hoover et al. 2023, arXiv 2302.07253) for PyTorch and Hugging Face transformers.

Importing the package imports torch and transformers, and registers the models with transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .block import Descent, EnergyBlock, Record
from .configuration_energy_transformer import EnergyTransformerConfig
from .configuration_energy_transformer_graph import EnergyTransformerGraphConfig
from .context import Edges, EnergyContext
from .energies import (
    BaseModernHopfield,
    EnergyAttention,
    EnergyLayerNorm,
    EnergyTerm,
    GELUModernHopfield,
    SoftmaxModernHopfield,
    register_energy_term,
    vjp,
)
from .energy_transformers import EnergyMHA, EnergyTransformer
from .modeling_energy_transformer import (
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
    EnergyTransformerModel,
    EnergyTransformerPreTrainedModel,
)
from .modeling_energy_transformer_graph import (
    EnergyTransformerForGraphClassification,
    EnergyTransformerForNodeClassification,
    EnergyTransformerGraphModel,
    EnergyTransformerGraphPreTrainedModel,
)
from .outputs import (
    EnergyParts,
    EnergyTransformerGraphClassifierOutput,
    EnergyTransformerGraphModelOutput,
    EnergyTransformerImageClassifierOutput,
    EnergyTransformerMaskedImageModelingOutput,
    EnergyTransformerModelOutput,
    EnergyTransformerNodeClassifierOutput,
)
from .updates import FlexibleUpdate, NormalizedUpdate, Update
from .utils.errors import UserError
from .weights import demo_checkpoint

__version__ = "0.1.0"

AutoConfig.register(EnergyTransformerConfig.model_type, EnergyTransformerConfig, exist_ok=True)
AutoModel.register(EnergyTransformerConfig, EnergyTransformerModel, exist_ok=True)
for _head in (AutoModelForMaskedImageModeling, AutoModelForPreTraining):
    _head.register(EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling, exist_ok=True)
AutoModelForImageClassification.register(
    EnergyTransformerConfig, EnergyTransformerForImageClassification, exist_ok=True
)
AutoConfig.register(EnergyTransformerGraphConfig.model_type, EnergyTransformerGraphConfig, exist_ok=True)
AutoModel.register(EnergyTransformerGraphConfig, EnergyTransformerGraphModel, exist_ok=True)
# a label of the whole, and of each token
AutoModelForSequenceClassification.register(
    EnergyTransformerGraphConfig, EnergyTransformerForGraphClassification, exist_ok=True
)
AutoModelForTokenClassification.register(
    EnergyTransformerGraphConfig, EnergyTransformerForNodeClassification, exist_ok=True
)

__all__ = [
    "BaseModernHopfield",
    "Descent",
    "Edges",
    "EnergyAttention",
    "EnergyBlock",
    "EnergyContext",
    "EnergyLayerNorm",
    "EnergyMHA",
    "EnergyParts",
    "EnergyTerm",
    "EnergyTransformer",
    "EnergyTransformerConfig",
    "EnergyTransformerForGraphClassification",
    "EnergyTransformerForImageClassification",
    "EnergyTransformerForMaskedImageModeling",
    "EnergyTransformerForNodeClassification",
    "EnergyTransformerGraphClassifierOutput",
    "EnergyTransformerGraphConfig",
    "EnergyTransformerGraphModel",
    "EnergyTransformerGraphModelOutput",
    "EnergyTransformerGraphPreTrainedModel",
    "EnergyTransformerImageClassifierOutput",
    "EnergyTransformerMaskedImageModelingOutput",
    "EnergyTransformerModel",
    "EnergyTransformerModelOutput",
    "EnergyTransformerNodeClassifierOutput",
    "EnergyTransformerPreTrainedModel",
    "FlexibleUpdate",
    "GELUModernHopfield",
    "NormalizedUpdate",
    "Record",
    "SoftmaxModernHopfield",
    "Update",
    "UserError",
    "demo_checkpoint",
    "register_energy_term",
    "vjp",
]
