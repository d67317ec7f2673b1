"""``finelens write``, ``export`` and ``serve``: answers and classifiers for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finelens.commands.options import device_option, moved_encoders_option
from finelens.core.console import Console
from finelens.core.given import PATH
from finelens.core.voice import voice


def _list_forms(context: click.Context, option: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    from finelens.exchange.forms import FORMS

    width = max(map(len, FORMS))
    for name, form in FORMS.items():
        click.echo(f"{name:<{width}}  {form.summary}")
    context.exit()


@click.command()
@voice
@click.argument("run", type=PATH)
@click.option("--to", required=True, metavar="FORM", help="Name of the form; finelens write --list shows all.")
@click.option("--out", required=True, type=PATH, help="New file or folder to write.")
@click.option("--csv", "predictions", type=PATH, help="Predictions on new photographs.  [default: those of the run]")
@click.option("--photos", type=PATH, help="Folder of the photographs.  [default: the run's]")
@click.option("--in", "in_file", type=PATH, help="File that predict --in was given, beside --csv.")
@click.option("--at-least", default=0.0, show_default=True, help="Probability below which an answer of the model is written as none.")
@click.option("--none-apart", is_flag=True, help="Write photographs that probably belong to none of the classes as such, with no class.")
@click.option("--how", type=click.Choice(["copy", "hardlink", "link"]), help="How folders get their photographs.  [default: copy]")
@click.option("--package", type=PATH, help="For camtrap-dp: folder of the package that the photographs are of.")
@click.option("--project", help="For wildlife-insights: id of the project.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_forms, help="Show the forms.")
def write(run: Path, to: str, out: Path, console: Console, **given: Any) -> None:
    """Write the answers of the finished run in RUN in the form of another tool: Timelapse, Label Studio, folders by class, ..."""
    from finelens.exchange.forms import write as write_form

    said = write_form(run, to, out, **given)
    console.answer(f"wrote {out}: {said}", out=str(out), form=to, text=said)


@click.command()
@voice
@click.argument("run", type=PATH)
@click.option("--to", required=True, type=click.Choice(["open_clip", "transformers", "onnx", "torch"]), help="torch: a program of torch.export.")
@click.option("--out", required=True, type=PATH, help="Folder to write.")
@click.option(
    "--weights", default="float32", show_default=True, type=click.Choice(["float32", "float16", "int8"]), help="Type of stored weights, for onnx."
)
@click.option("--resize", is_flag=True, help="For onnx: resize and crop inside; one photograph of any size, uint8 (1, 3, H, W), goes in.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in --out.")
@moved_encoders_option
def export(run: Path, out: Path, **given: Any) -> None:
    """Write the classifier of the finished run in RUN for another runtime, and compare its answers with the run's."""
    from finelens import api

    found = api.export(run, out, **given)
    given["console"].answer("", out=str(out), form=given["to"], images=found.images, equal=found.equal)


@click.command()
@voice
@click.argument("run", type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; one that others reach needs a token.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one.")
@click.option("--token-file", type=PATH, help="File with the token of requests.  [default: variable FINELENS_TOKEN]")
@device_option
@click.option("--calibrate", type=PATH, help="CSV file path,label: answers carry conformal sets.")
@click.option("--calibrate-photos", type=PATH, help="Folder of the labelled photographs.  [default: the run's]")
@click.option("--coverage", type=float, help="Share of the sets that should hold the true class.  [default: 0.9]")
@click.option("--max-images", default=32, show_default=True, help="Images of a request.")
@click.option("--max-image-mb", default=20.0, show_default=True, help="Size of an image.")
@click.option("--max-request-mb", default=64.0, show_default=True, help="Size of a request.")
@click.option("--batch", default=16, show_default=True, help="Most images that the model answers at a time.")
@click.option("--wait", default=5.0, show_default=True, help="Milliseconds that a batch waits for further images.")
@click.option("--queue", default=256, show_default=True, help="Images that wait at most; who comes then is told to come back.")
@moved_encoders_option
def serve(
    run: Path,
    max_images: int,
    max_image_mb: float,
    max_request_mb: float,
    batch: int,
    wait: float,
    queue: int,
    **given: Any,
) -> None:
    """Answer over HTTP with the finished run in RUN: POST images to /predict (docs/serve.md)."""
    from finelens.serving.server import serve as serve_run
    from finelens.serving.settings import Settings

    serve_run(run, settings=Settings(max_images, max_image_mb, max_request_mb, batch, wait, queue), **given)
