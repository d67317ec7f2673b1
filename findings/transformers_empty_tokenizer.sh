#!/usr/bin/env bash
# Without tokenizer files AutoTokenizer gives a tokenizer to which every word is unknown, and says nothing.
#
# A model folder that was saved without its tokenizer (save_pretrained of the model alone) takes texts all the same: each word is the unknown token,
# and a zero-shot classifier answers with one and the same vector for every class.
# Remedy: ask for tokenizer.json, or for the vocabulary with its merges, before the tokenizer is loaded.
# Seen with transformers 5.24.0. Exits 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "transformers==5.24.0"
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import transformers

transformers.CLIPConfig().save_pretrained("model")
try:
    tokenizer = transformers.AutoTokenizer.from_pretrained("model")
except Exception as error:
    print(f"refused: {type(error).__name__}: {error}")
    raise SystemExit(1)
ids = tokenizer(["a photo of a cat", "a photo of a dog"])["input_ids"]
print("transformers", transformers.__version__, type(tokenizer).__name__, "vocabulary", len(tokenizer), ids)
raise SystemExit(0 if ids[0] == ids[1] else 1)
PY
