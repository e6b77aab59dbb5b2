"""A web page: drop an image, see its mask. Only this machine can open it, and it contacts no other machine."""

import os
import shutil
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from segsweep import console
from segsweep.data.images import read_image
from segsweep.data.labels import VOID
from segsweep.data.split import SPLIT, read_split
from segsweep.errors import ConfigError, DataError, OutOfMemoryError, Terminated
from segsweep.figures import pictures
from segsweep.inference.find import Found
from segsweep.inference.predict import Predictor
from segsweep.nn.checkpoint import ModelInfo
from segsweep.nn.unet import predict as classes_of
from segsweep.paths import extra
from segsweep.ports import available
from segsweep.process import show as say
from segsweep.process import terminable

if TYPE_CHECKING:
    import gradio

HOST = "127.0.0.1"
NAMES = (HOST, "localhost", "::1")  # of this machine
EXAMPLES = 8
THUMBNAIL, SHORTEST, LONGEST = 256, 640, 2048  # pixels of the longer side: of an example, and of what is shown
KEPT = 3600  # seconds that a visitor's files are kept
OPACITY = 0.45

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported


@dataclass(frozen=True)
class Segmented:
    """An image and the model's output for it; the threshold is applied later."""

    name: str  # of the file, without its suffix
    rgb: np.ndarray  # to look at, uint8 `h w 3`
    logits: np.ndarray | None  # of the foreground, float32 `h w`; None of several classes
    classes: np.ndarray | None  # the most likely of several, uint8 `h w`; None of two
    folder: Path  # for its mask
    nowhere: np.ndarray | None = None  # pixels without data, bool `h w`

    def decided(self, threshold: float) -> np.ndarray:
        """Return class indices, uint8 `h w`, VOID where there are no data.

        Of two classes the foreground where it is likelier than the threshold.
        """
        classes = self.classes
        if classes is None:
            classes = np.asarray(self.logits > np.log(threshold / (1 - threshold)), np.uint8)
        return classes if self.nowhere is None else np.where(self.nowhere, np.uint8(VOID), classes)


def segment(predictor: Predictor, path: Path, folder: Path) -> Segmented:
    """Run the model on an image's file, as `segsweep predict` does; one that it cannot take is a `DataError`."""
    try:
        picture = predictor.picture(path)
    except DataError as error:
        raise DataError(str(error).replace(str(path), path.name)) from error  # where it was kept is nobody's concern
    binary, pixels = len(predictor.classes) == 2, picture.pixels
    said = np.empty(pixels.shape[:2], np.float32 if binary else np.uint8)
    (parts,) = predictor.logits([pixels])
    for rows, found in parts:
        said[rows] = (found[0] if binary else classes_of(found[None])[0].to(torch.uint8)).cpu().numpy()
    rgb = pictures.shown(pixels, *predictor.range)
    logits, classes = (said, None) if binary else (None, said)
    return Segmented(path.stem, rgb, logits, classes, Path(tempfile.mkdtemp(dir=folder)), picture.nowhere)


def painted(seen: Segmented, classes: np.ndarray, opacity: float) -> np.ndarray:
    """Paint the classes over the image, uint8 `h w 3`; enlarge it up to `SHORTEST` pixels, or thin it out."""
    side = max(classes.shape)
    step, times = -(-side // LONGEST), max(1, SHORTEST // side)
    small = pictures.overlay(seen.rgb[::step, ::step], classes[::step, ::step], opacity)
    return small.repeat(times, 0).repeat(times, 1)


def shares(classes: np.ndarray, names: list[str]) -> dict[str, float]:
    """Return the share of each class, 0 to 1, of the pixels that have data."""
    known = classes[classes != VOID]
    counts = np.bincount(known, minlength=len(names))
    return {name: float(count) / max(known.size, 1) for name, count in zip(names, counts, strict=True)}


def examples(found: Found) -> list[Path]:
    """Return some validation images of the run that are still there."""
    if found.folder is None or not (found.folder / SPLIT).is_file():
        return []
    images = [Path(row["image"]) for row in read_split(found.folder) if row["split"] == "val"]
    return [path for path in images if path.is_file()][:EXAMPLES]


def page(predictor: Predictor, found: Found, folder: Path) -> "gradio.Blocks":
    """Build the page, not yet served; who serves it removes the folder for what visitors download."""
    try:
        import gradio as gr
    except ImportError as error:
        raise ConfigError(f"segsweep demo needs Gradio. Type: {extra('demo')}") from error

    binary, shown = len(predictor.classes) == 2, examples(found)

    def forget(seen: Segmented | None) -> None:
        if seen:
            shutil.rmtree(seen.folder, ignore_errors=True)

    def look(path: str | Path | None, before: Segmented | None) -> Segmented | None:
        try:
            seen = None if path is None else segment(predictor, Path(path), folder)
        except (DataError, OutOfMemoryError) as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        forget(before)  # which stays where the new one cannot be
        return seen

    def show(seen: Segmented | None, threshold: float, opacity: float) -> tuple[Any, str, Any]:
        if seen is None:
            return None, "", gr.DownloadButton(interactive=False)
        classes, mask = seen.decided(threshold), seen.folder / f"{seen.name}.png"
        pictures.indexed(classes).save(mask)
        legend = _legend(shares(classes, predictor.classes))
        return painted(seen, classes, opacity), legend, gr.DownloadButton(value=str(mask), interactive=True)

    def pick(before: Segmented | None, event: gr.SelectData) -> Segmented | None:
        return look(shown[event.index], before)

    with gr.Blocks(title="segsweep", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        gr.HTML(f"<h1>segsweep</h1><p>{escape(_about(predictor.info, found))}</p>")
        state = gr.State(None, time_to_live=KEPT, delete_callback=forget)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                given = gr.File(label="image: drop it here", height=140, elem_id="image")
                threshold = gr.Slider(
                    0.01, 0.99, 0.5, step=0.01, label=f"threshold for {predictor.classes[1]}", visible=binary,
                    elem_id="threshold",
                )  # fmt: skip
                opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="opacity", elem_id="opacity")
                legend = gr.HTML(elem_id="shares")
                mask = gr.DownloadButton("mask (PNG)", interactive=False, elem_id="mask")
            with gr.Column(scale=3):
                overlay = gr.Image(
                    label="what the model sees", format="png", interactive=False, height=480,
                    buttons=["download", "fullscreen"], elem_id="overlay",
                )  # fmt: skip
        if shown:
            gallery = gr.Gallery(
                [_thumbnail(path, predictor.range) for path in shown], label="validation images", elem_id="examples",
                columns=EXAMPLES, height=180, object_fit="contain", allow_preview=False, interactive=False, buttons=[],
            )  # fmt: skip
        inputs, outputs = [state, threshold, opacity], [overlay, legend, mask]
        looks = [given.change(look, [given, state], state)]
        if shown:
            looks.append(gallery.select(pick, state, state))
        for event in looks:
            event.success(show, inputs, outputs, show_progress="hidden")
        for slider in (threshold, opacity):
            slider.change(show, inputs, outputs, trigger_mode="always_last", show_progress="hidden")
    return blocks  # type: ignore[no-any-return]


def serve(predictor: Predictor, found: Found, port: int) -> None:
    """Show the page on this machine, at port 0 on any that is free, until Ctrl-C or SIGTERM; print its address."""
    port = available(HOST, port, "segsweep demo")
    with tempfile.TemporaryDirectory(prefix="segsweep-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # else others may read what is shown, and it stays
        blocks = page(predictor, found, Path(folder))
        import gradio as gr
        from starlette.middleware import Middleware

        # Gradio's own theme asks for fonts from elsewhere.
        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        try:
            with terminable():
                _, address, _ = blocks.launch(
                    server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
                    ssr_mode=False, mcp_server=False, enable_monitoring=False, run_history=False, footer_links=[],
                    allowed_paths=[folder], theme=theme, app_kwargs={"middleware": [Middleware(OwnPage)]},
                )  # fmt: skip
                say(f"demo            {address}")
                console.note("Ctrl-C stops it")
                threading.Event().wait()
        except (KeyboardInterrupt, Terminated):
            pass
        finally:
            blocks.close(verbose=False)


class OwnPage:
    """Answers what this machine's own page asks, as ASGI: a name that somebody has pointed here is no name of ours.

    Otherwise any page that is open in the browser could read the images (DNS rebinding), or send some.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        origin = headers.get(b"origin")
        asked = [f"//{headers.get(b'host', '')}", *([origin] if origin else [])]
        if scope["type"] == "lifespan" or all(_hostname(address) in NAMES for address in asked):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"for this machine's own page alone"})


def _hostname(address: str) -> str | None:
    with suppress(ValueError):
        return urlsplit(address).hostname
    return None


def _about(info: ModelInfo, found: Found) -> str:
    place = "/".join((found.folder or found.model).parts[-2:])
    scored = "" if info.val_iou is None else f", validation IoU {info.val_iou:.3f}"
    return f"{place}: a U-Net on {info.encoder}, trained at {info.size[1]}×{info.size[0]}{scored}"


def _thumbnail(path: Path, limits: tuple[float, float]) -> Image.Image:
    picture = Image.fromarray(pictures.shown(read_image(path), *limits))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture


def _legend(found: dict[str, float]) -> str:
    """Return each class with its colour and share, as HTML."""
    html = ""
    for (name, share), rgb in zip(found.items(), pictures.COLORS.astype(int), strict=False):
        color = "#{:02x}{:02x}{:02x}".format(*rgb)
        html += (
            f'<div style="display:flex;align-items:center;gap:.5em;margin:.2em 0">'
            f'<span style="width:1em;height:1em;border-radius:2px;background:{color}"></span>'
            f'<span style="flex:1">{escape(name)}</span><span>{100 * share:.1f} %</span></div>'
            f'<div style="height:4px;border-radius:2px;background:{color};width:{100 * share:.1f}%"></div>'
        )
    return html
