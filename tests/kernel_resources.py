"""What the compiler makes of the kernels for devices that are not here: registers, spills, shared memory, instructions.

`python tests/kernel_resources.py` prints a table of all that the triton backend chooses.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from energy_transformer.kernels import tiles, triton_kernels

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CAPABILITIES = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}
IN_TILES = ["forward_rows", "forward_columns", "backward_rows", "backward_columns", "backward_bias"]
WHOLE = ["forward_whole", "backward_whole"]
VECTORS = ["beta", "logsumexp", "row_weights", "row_sums", "grad_beta", "grad_bias"]
POINTERS = {"mask": "u8", "tokens": "u8"} | dict.fromkeys(VECTORS, "fp32")
OPTIONAL = {"mask", "tokens", "row_weights", "bias"}
UNALIGNED = {"heads", "length", "images_of_one", "heads_of_one", "of_heads"}  # any number, not only multiples of 16
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Case(NamedTuple):
    """A kernel as the triton backend calls it."""

    kernel: str
    target: str
    dtype: str
    width: int
    masked: bool  # with a mask, padding, a bias, causality and no diagonal, else with nothing of these
    length: int = 1024

    @property
    def tile(self) -> tiles.Tile | None:
        """None where the backend calls another kernel."""
        backward, dtype, capability = self.kernel.startswith("back"), DTYPES[self.dtype], CAPABILITIES[self.target]
        if self.kernel == "backward_bias":
            return tiles.tile_of_bias(self.width)
        if self.kernel in IN_TILES:
            return tiles.tile_of(self.width, dtype, capability, backward)
        return tiles.tile_of_whole(self.length, self.width, dtype, 1024, capability, backward)


class Resources(NamedTuple):
    """Of a program: registers of a thread, bytes of its stack (spilled registers) and of shared memory; and the
    instructions of the kernel, and how many of them multiply matrices."""

    registers: int
    stack: int
    shared: int
    instructions: int
    products: int


def cases(dtypes=("bf16",), widths=(16, 32, 64, 128), targets=tuple(CAPABILITIES)) -> Iterator[Case]:
    """All that the backend chooses."""
    for target in targets:
        for dtype in dtypes:
            for width in widths:
                for masked in (False, True):
                    for kernel in IN_TILES:
                        if masked or kernel != "backward_bias":
                            yield Case(kernel, target, dtype, width, masked)
                    for length in (64, 256):
                        whole = (Case(kernel, target, dtype, width, masked, length) for kernel in WHOLE)
                        yield from (case for case in whole if case.tile is not None)


def compiled(case: Case):
    """The kernel as Triton compiles it for the target."""
    function, tile = getattr(triton_kernels, case.kernel), case.tile
    assert tile is not None
    constants = {
        "ATTEND_TO_SELF": not case.masked, "CAUSAL": int(case.masked), "PRECISION": "tf32x3", "WIDTH": case.width,
        "BLOCK": tile.block, "INNER": tile.inner,
    }  # fmt: skip
    names = function.arg_names
    constants |= dict.fromkeys({"mask_j", "bias_j"} & set(names), 1) if case.masked else {}
    constants |= {} if case.masked else dict.fromkeys(OPTIONAL & set(names))
    signature, attributes = {}, {}
    for position, name in enumerate(names):
        is_number = name in {"heads", "length", "width", *UNALIGNED} or name[-2:] in ("_b", "_h", "_n", "_i", "_j")
        signature[name] = "i32" if is_number else "*" + POINTERS.get(name, case.dtype)
        if name in constants:
            signature[name] = "constexpr"
        elif name not in UNALIGNED:
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constants, attributes)
    target = GPUTarget("cuda", int(case.target.removeprefix("sm_")), 32)
    return triton.compile(source, target=target, options={"num_warps": tile.warps, "num_stages": tile.stages})


def resources(case: Case) -> Resources:
    binary = compiled(case)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    registers, stack = (int(usage.split(f"{key}:")[1].split()[0]) for key in ("REG", "STACK"))
    lines = [line for line in code.splitlines() if line.lstrip().startswith("/*") and ";" in line]
    products = sum("MMA" in line for line in lines)
    return Resources(registers, stack, binary.metadata.shared, len(lines), products)


if __name__ == "__main__":
    print(f"| {' | '.join((*Case._fields, 'tile', *Resources._fields))} |\n|{' --- |' * 12}")
    for case in [*cases(), *cases(["fp32"], (32, 64))]:
        row = (*case, tuple(case.tile), *resources(case))
        print(f"| {' | '.join(map(str, row))} |", flush=True)
