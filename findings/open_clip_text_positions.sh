#!/usr/bin/env bash
# open_clip 3.3.0 interpolates the text position table of a checkpoint to the configuration's context_length, with a line at logging.info only.
# A folder whose configuration says 32 for a model of 77 loads, without warning or error, and its texts become other vectors (cosine 0.5 to 0.8 with
# the right ones for random weights), though every text fits into 32 tokens. The first 32 rows as they are give the same vectors.
# Remedy: context_length as the weights have it.
# Exits 0 while this is so.
set -eu
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
python3 -m venv "$T/env"
"$T/env/bin/pip" install -q open_clip_torch==3.3.0 torch==2.14.1 torchvision==0.29.1
cd "$T"
"$T/env/bin/python" - <<'P'
import json
import logging
import sys
import warnings

import open_clip
import torch

warnings.simplefilter("error")
torch.manual_seed(0)
said = []
logging.getLogger().addHandler(type("Kept", (logging.Handler,), {"emit": lambda self, record: said.append(record)})())


def load(context, weights=None):
    text = {"context_length": context, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    with open("tiny.json", "w") as file:
        json.dump({"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}, file)
    open_clip.add_model_config("tiny.json")
    return open_clip.create_model("tiny", pretrained=weights).eval()


@torch.no_grad()
def vectors(model, context):
    texts = [f"a photo of a {name}." for name in ("tabby cat", "red panda", "oak tree", "city bus")]
    return model.encode_text(open_clip.tokenize(texts, context_length=context), normalize=True)


whole = load(77)
torch.save(whole.state_dict(), "weights.pt")
said.clear()
short = load(32, "weights.pt")
right = vectors(whole, 77)
found = (right * vectors(short, 32)).sum(1)
print("cosine with the right vectors:", [round(value, 2) for value in found.tolist()], "; warnings said:", [record.getMessage() for record in said])
short.positional_embedding.data = whole.positional_embedding.data[:32].clone()
short.attn_mask = short.attn_mask[:32, :32]
kept = (right * vectors(short, 32)).sum(1)
print("with the first 32 rows as they are:", [round(value, 2) for value in kept.tolist()])
sys.exit(not (found.max() < 0.95 and kept.min() > 0.9999 and not said))
P
