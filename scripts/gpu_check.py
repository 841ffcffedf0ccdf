"""Prove and measure the package on one CUDA device: `make gpu`, or scripts/gpu_check.py [--parts a,b]"""

import sys
from pathlib import Path

from energy_transformer.utils.command_line import run_script

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    from gpu.main import main

    run_script(main)
