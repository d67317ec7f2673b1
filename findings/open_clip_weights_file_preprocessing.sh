#!/usr/bin/env bash
# open_clip 3.3.0 knows how to prepare photographs by the pretrained tag, not by the architecture. create_model_and_transforms(name, pretrained="FILE"), the
# way to use downloaded or own weights, prepares them as OpenAI's model wants it: other mean and deviation, another interpolation, and a crop where the tag
# says squash. That concerns 58 of 196 tags (SigLIP, PE-Core, MobileCLIP ...). create_model_from_pretrained does the same. Nothing is said, for the
# activation neither, which a tag is compared with by a warning.
# Remedy: force_preprocess_cfg or image_mean, image_std, ... with what open_clip.get_pretrained_cfg(name, tag) says.
# Exits 0 while this is so.
set -eu
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
python3 -m venv "$T/env"
"$T/env/bin/pip" install -q open_clip_torch==3.3.0 torch==2.14.1 torchvision==0.29.1 timm==1.0.31
cd "$T"
"$T/env/bin/python" - <<'P'
import logging
import sys
import warnings

import open_clip
import torch

warnings.simplefilter("error")
NAME, TAG = "MobileCLIP2-S0", "dfndr2b"
said = []
logging.getLogger().addHandler(type("Kept", (logging.Handler,), {"emit": lambda self, record: said.append(record)})())
tag = open_clip.get_pretrained_cfg(NAME, TAG)
torch.save(open_clip.create_model(NAME).state_dict(), "weights.pt")  # random, in the place of those of the tag
said.clear()
_, _, prepare = open_clip.create_model_and_transforms(NAME, pretrained="weights.pt")
resize, normalize = prepare.transforms[0], prepare.transforms[-1]
found = {"mean": tuple(normalize.mean), "std": tuple(normalize.std), "interpolation": resize.interpolation.value}
print("said:", [record.getMessage() for record in said])
print("the tag says:", {key: tag[key] for key in found})
print("with the file:", found)
fields = ("mean", "std", "interpolation", "resize_mode")
openai = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
tags = [open_clip.get_pretrained_cfg(*pair) for pair in open_clip.list_pretrained()]
others = sum(any(tag[key] != openai[key] for key in fields) for tag in tags)
print(f"{others} of {len(tags)} tags differ from what a file gets")
sys.exit(not (all(found[key] == openai[key] != tag[key] for key in found) and not said and others > 40))
P
