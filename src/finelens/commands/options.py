"""Options that several verbs share, each worded once."""

from __future__ import annotations

import click

from finelens.core.given import PATH, TEXT
from finelens.core.schemas import VERDICTS
from finelens.core.voice import JUDGED

# The forms that --backbone has.
BACKBONES = "embedded, open_clip:NAME/TAG, hf-hub:ORG/REPO, local:DIR or transformers:DIR_OR_ORG/REPO."

device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or mps.")
strict_option = click.option("--strict", is_flag=True, help="Note in its row a photograph that decodes although the image library complained.")
row_names_option = click.option("--row-names", type=PATH, help="Text file, a name for each row of a feature file of another origin.")
in_option = click.option(
    "--in",
    "in_file",
    type=PATH,
    help="File of another tool (MegaDetector, Label Studio, ...): what it names of PHOTOS is classified, its boxes as crops.",
)
box_confidence_option = click.option(
    "--box-confidence", type=float, help="Boxes of a detector in --in that are less sure are left out.  [default: 0.2]"
)
csv_bom_option = click.option("--csv-bom", is_flag=True, help="Begin CSV files of answers with a byte-order mark, for Excel.")
group_by_option = click.option(
    "--group-by", metavar="RULE", type=TEXT, help="Answer for photographs that belong together: folder, time:SECONDS or column:FILE."
)
extra_option = click.option(
    "--extra",
    multiple=True,
    type=TEXT,
    help="Feature file of a further encoder about the same images, for consensus, joint-gmm, self-adaptive-ot; repeatable.",
)
extra_names_option = click.option("--extra-names", multiple=True, type=PATH, help="Row names of an --extra array of another origin.")
extra_encoders_option = click.option(
    "--extra-encoder",
    "extra_encoders",
    multiple=True,
    type=TEXT,
    help="Further encoder by name: timm:NAME[@FILE], transformers:DIR_OR_ORG/REPO (DINOv2, DINOv3) or a form of --backbone; repeatable.",
)
moved_encoders_option = click.option(
    "--extra-encoder",
    "extra_encoders",
    multiple=True,
    type=TEXT,
    help="Where the weights of a run's --extra-encoder are now, if they have moved; repeatable.",
)
photos_now_option = click.option("--photos", type=PATH, help="Where the run's photographs are now, if they have moved.")
fail_on_option = click.option(
    "--fail-on",
    type=click.Choice([level.replace(" ", "-") for level in VERDICTS[1:]]),
    help=f"Exit with code {JUDGED} if the verdict is this or a worse one; the order is {', '.join(VERDICTS)}.",
)
