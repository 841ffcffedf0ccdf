"""The descent as an animation."""

import base64
import io
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..utils.errors import UserError
from ..utils.files import atomic_path
from .energy_pictures import color_scale, draw_energy, draw_map
from .pictures import Picture, draw_image, panel_size
from .reconstruction import Reconstruction
from .token_geometry import draw_changes

_LAST = 4  # times as long as another frame
SUFFIXES = (".gif", ".mp4")


class Animation:
    """Frames of one size, which show themselves in a notebook as a GIF.

    Attributes:
        frames: uint8, (frames, height, width, 3).
        seconds: that each is shown; the last one four times as long.
    """

    def __init__(self, frames: Sequence[np.ndarray], seconds: float = 0.6):
        self.frames = np.stack(frames)
        self.seconds = seconds

    def _repr_html_(self) -> str:
        """What IPython shows."""
        return f'<img src="data:image/gif;base64,{base64.b64encode(self.gif()).decode()}">'

    def gif(self) -> bytes:
        """The animation as a GIF that repeats for ever."""
        first, *others = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in self.frames]
        milliseconds = [round(1000 * self.seconds)] * len(self.frames)
        milliseconds[-1] *= _LAST
        buffer = io.BytesIO()
        first.save(buffer, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0, optimize=True)
        return buffer.getvalue()

    def save(self, path: str | Path) -> None:
        """Write a GIF, or an MP4 (H.264) where the program ffmpeg is installed, by the ending of the name.

        Raises:
            UserError: for another ending, or an MP4 without ffmpeg.
        """
        path = Path(path)
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"an animation must end in {' or '.join(SUFFIXES)}, got {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            if path.suffix.lower() == ".gif":
                temporary.write_bytes(self.gif())
            else:
                self._write_mp4(temporary)

    def _write_mp4(self, path: Path) -> None:
        program = shutil.which("ffmpeg")
        if program is None:
            raise UserError(
                "an MP4 needs the program ffmpeg, which is not installed here; a name in .gif needs nothing"
            )
        frames = np.concatenate([self.frames, np.repeat(self.frames[-1:], _LAST - 1, axis=0)])
        frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]  # the format wants even sides
        size, rate = f"{frames.shape[2]}x{frames.shape[1]}", f"{1 / self.seconds:.4f}"
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", rate, "-i", "-"]
        target = ["-vcodec", "libx264", "-pix_fmt", "yuv420p", "-r", "25", "-f", "mp4", str(path)]
        done = subprocess.run(
            [program, "-loglevel", "error", "-y", *source, *target], input=frames.tobytes(), capture_output=True
        )
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().splitlines() or ["it gave no reason"]
            raise UserError(f"ffmpeg could not write {path.suffix}: {reason[-1]}")


def has_ffmpeg() -> bool:
    """Whether an MP4 can be written."""
    return shutil.which("ffmpeg") is not None


def descent_animation(result: Reconstruction, image: int = 0, seconds: float = 0.6) -> Animation:
    """The descent of one image: what is decoded, the energy of each patch, the energy and the change of each step.

    Args:
        result: of [`reconstruct`].
        image: its place in the batch.
        seconds: of each state.
    """
    return Animation([_frame(result, image, step).pixels() for step in range(result.num_steps + 1)], seconds)


def _frame(result: Reconstruction, image: int, step: int) -> Picture:
    """The state at one step, with a red dot on its curves."""
    width, height = panel_size(*result.images.shape[-2:])
    width = 2.3 * width / height
    picture = Picture(2 * width + 4.6, 3.0, {})
    left, middle, energy_axis, change_axis = picture.subplots(1, 4, width_ratios=[width, width, 1.9, 1.9])
    error = result.errors(result.frames[step])[image].item()
    draw_image(left, result.filled_in(result.frames[step])[image], f"step {step}", f"error {error:.4f}")
    maps = result.energy_map()[image]
    draw_map(middle, maps[step], color_scale(maps), "energy of each patch", "bright is high, dark is low")
    draw_energy(energy_axis, result, image, [step])
    energy_axis.set_title("its energy", fontsize=9, pad=3)
    draw_changes(change_axis, result.changes[image : image + 1], [step])
    change_axis.set_title("how far a step goes", fontsize=9, pad=3)
    return picture
