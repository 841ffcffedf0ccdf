"""A Hugging Face Space: the app on the model that the variable CHECKPOINT names, or on the demo's."""

import os

from energy_transformer import demo_checkpoint
from energy_transformer.app.interface import MAX_UPLOAD, build
from energy_transformer.app.session import Explorer

build(Explorer.of(os.environ.get("CHECKPOINT") or str(demo_checkpoint()))).launch(max_file_size=MAX_UPLOAD)
