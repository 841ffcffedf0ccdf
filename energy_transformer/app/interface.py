"""The interface of the app, in Gradio.

What belongs to a user is in the state of the session. The server reads no file but what is uploaded to it, and serves
none but what it made.
"""

from collections.abc import Callable
from functools import wraps

import gradio as gr
import numpy as np
from PIL import Image

from ..data.demo import PHOTOGRAPHS, photograph
from ..utils.errors import UserError
from .session import MAX_IMAGE_PIXELS, Explorer, energy_curve, energy_map, painted_on

MAX_UPLOAD = "20mb"
INTRODUCTION = """# Energy Transformer
Paint over a part of the picture, and let the model fill it in. It descends an energy, step by step, until the patches
fit to each other. Click on the result to see where a patch looks."""


def _tell(function: Callable) -> Callable:
    """A user's mistake as a message in the browser."""

    @wraps(function)
    def told(*arguments):
        try:
            return function(*arguments)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return told


def _drawn(name: str) -> gr.Image:
    """A place for a picture that the app makes; a label or buttons would cover a part of it."""
    return gr.Image(show_label=False, interactive=False, buttons=[], elem_id=name)


class Handlers:
    """What happens in the app when a user does something; the arguments are what Gradio passes."""

    def __init__(self, explorer: Explorer):
        self.explorer = explorer

    def _show(self, picture: np.ndarray):
        """A new picture: in the editor, and nothing filled in yet."""
        shown = self.explorer.enlarged(picture)
        return picture, {"background": shown, "layers": [], "composite": shown}, None, None, None, None, None

    @_tell
    def upload(self, path: str):
        return self._show(self.explorer.open(path))

    @_tell
    def choose(self, name: str):
        return self._show(self.explorer.fit(Image.fromarray(photograph(PHOTOGRAPHS[name][0]))))

    @_tell
    def fill_in(self, picture, editor, num_steps):
        if picture is None:
            raise UserError("there is no picture yet: choose a photograph, or upload one")
        found = self.explorer.descend(picture, painted_on(editor), int(num_steps))
        last = found.num_steps
        return found, gr.Slider(maximum=max(last, 1), value=last, interactive=last > 0), *self.look(found, last), None

    def look(self, found, step):
        if found is None:
            return None, None, None
        step = min(int(step), found.num_steps)
        return self.explorer.frame(found, step), energy_map(found, step).pixels(), energy_curve(found, step).pixels()

    @_tell
    def attend(self, found, event: gr.SelectData):
        if found is None or found.num_steps == 0:
            raise UserError("there is no descent yet: fill the picture in first, with at least one step")
        return self.explorer.attention(found, *event.index).pixels()

    @_tell
    def memories(self):
        return self.explorer.memories().pixels()


def build(explorer: Explorer) -> gr.Blocks:
    """The app for a model. What is uploaded and made is deleted after an hour."""
    Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS // 2  # Pillow refuses twice as many, in gradio's own hands too
    do = Handlers(explorer)
    with gr.Blocks(title="Energy Transformer", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        picture, found = gr.State(), gr.State()
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                name = gr.Dropdown(list(PHOTOGRAPHS), label="Photograph", value=None, elem_id="photograph")
                file = gr.UploadButton("Upload a picture", file_types=["image"], type="filepath")
                editor = gr.ImageEditor(
                    label="Paint to hide", type="numpy", image_mode="RGBA", sources=[], transforms=[],
                    layers=False, height=520, elem_id="editor",
                    brush=gr.Brush(colors=["#808088"], default_size=48, color_mode="fixed"),
                )  # fmt: skip
                default = max(explorer.model.config.steps_of_blocks)
                num_steps = gr.Slider(1, explorer.most_steps, default, step=1, label="Steps of the descent")
                run = gr.Button("Fill in", variant="primary", elem_id="fill-in")
            with gr.Column():
                step = gr.Slider(0, default, default, step=1, label="Shown step", elem_id="step")
                result = _drawn("result")
                with gr.Row():
                    energies, curve = _drawn("energies"), _drawn("curve")
                gr.Markdown("**Where a patch looks**: click on one in the picture above.")
                attention = _drawn("attention")
        with gr.Accordion("The memories of the model", open=False, elem_id="memories"):
            browse = gr.Button("Show them", elem_id="browse")
            memories = _drawn("memory-pictures")

        all_of_a_picture = [picture, editor, found, result, energies, curve, attention]
        name.input(do.choose, name, all_of_a_picture)
        file.upload(do.upload, file, all_of_a_picture)
        run.click(do.fill_in, [picture, editor, num_steps], [found, step, result, energies, curve, attention])
        step.input(do.look, [found, step], [result, energies, curve], show_progress="hidden")
        result.select(do.attend, found, attention)
        browse.click(do.memories, None, memories)
    return app
