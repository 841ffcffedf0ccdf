"""Loads each saved state below a folder in one run, and writes `outcomes-PROCESS.json`: started by a launcher.

load_hostile_states.py FOLDER [--option value]
"""

import json
import sys
from pathlib import Path

from training_runs import build

from energy_transformer.training.saved_states import choose_state
from energy_transformer.utils.errors import UserError


def main(folder, *words):
    outcomes = {}
    training = build(folder / "run", "--cpu", *words)
    for state in sorted(path for path in (folder / "states").iterdir()):
        outcome = "loaded"
        try:
            chosen = choose_state(training.accelerator, training.folder, str(state), training.args.trust_state)
            training.checkpoints.load(chosen)
        except UserError as error:
            outcome = f"refused: {error}"
        outcomes[state.name] = outcome
        training.accelerator.wait_for_everyone()
    (folder / f"outcomes-{training.accelerator.process_index}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
