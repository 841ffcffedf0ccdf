"""The parts of `make gpu`, which `scripts/gpu_check.py` runs: what a CUDA device is to prove and to measure."""
