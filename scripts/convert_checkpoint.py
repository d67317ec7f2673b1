"""A state dict of CLIP's layout in a pickled file, as papers publish them, as a folder for ``--backbone local:DIR``.

    python scripts/convert_checkpoint.py longclip-B.pt --architecture ViT-B-16-quickgelu --out longclip-b
    python scripts/convert_checkpoint.py cloob.pt --architecture RN50-quickgelu --drop logit_inv_tau --out cloob

Only tensors are read (``weights_only``). Wrappers (``state_dict``, ``model``, ``module.``) are taken off, Long-CLIP's two tables of positions become
the one that its model adds up, and the length of the texts follows the table. Every tensor of the architecture must be there with its shape; tensors
that it does not have are named and refused unless ``--drop`` names them. Which activation the weights were trained with cannot be seen in them:
choose the architecture with ``-quickgelu`` or without, as the paper says.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

# Positions that Long-CLIP keeps from CLIP; those after them are in a table of their own.
KEPT_POSITIONS = 20
POSITIONS, FURTHER = "positional_embedding", "positional_embedding_res"
WRAPPERS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "model.", "clip.")


def read_state(file: Path) -> dict[str, Tensor]:
    """Tensors of a pickled or safetensors file by CLIP's names, in float32."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        found: Any = load_file(file)
    else:
        # Trainings write their settings beside the weights; a namespace holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(file, map_location="cpu", weights_only=True)
    while isinstance(found, dict) and (inner := next((found[key] for key in WRAPPERS if isinstance(found.get(key), dict)), None)) is not None:
        found = inner
    state = {name: tensor.float() for name, tensor in found.items() if isinstance(tensor, Tensor)}
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def one_table(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Long-CLIP adds the first rows of one table and the last rows of another; here they are one."""
    if FURTHER not in state:
        return state
    rest = dict(state)
    further = rest.pop(FURTHER)
    return {**rest, POSITIONS: torch.cat([rest[POSITIONS][:KEPT_POSITIONS], further[KEPT_POSITIONS:]])}


def convert(state: dict[str, Tensor], config: dict[str, Any], drop: Iterable[str] = ()) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of the folder.

    Raises:
        SystemExit: Tensors are missing, too many or of other shapes.
    """
    state = one_table(state)
    # Written by OpenAI's and similar code for its own use.
    for name in ("input_resolution", "context_length", "vocab_size", *drop):
        state.pop(name, None)
    custom = bool(config.get("custom_text"))
    positions = state.get(f"text.{POSITIONS}" if custom else POSITIONS)
    if positions is not None:
        config = {**config, "text_cfg": {**config["text_cfg"], "context_length": len(positions)}}
    arguments = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items() if key != "custom_text"}
    with torch.device("meta"):
        wanted = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**arguments).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    # Scalars are written with and without an axis.
    scalars = {name for name, tensor in state.items() if shapes.get(name) == () and tensor.numel() == 1}
    state = {name: tensor.reshape(()) if name in scalars else tensor for name, tensor in state.items()}
    missing, unknown = sorted(set(shapes) - set(state)), sorted(set(state) - set(shapes))
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    other = [f"{name} {found[name]} and not {shape}" for name, shape in shapes.items() if found.get(name, shape) != shape]
    for what, names in (("lacks", missing), ("has what the architecture does not have (--drop it, or choose another)", unknown), ("has", other)):
        if names:
            raise SystemExit(f"the checkpoint {what}: {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else ""))
    return config, {name: state[name].contiguous() for name in shapes}


def write(out: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """The folder."""
    out.mkdir(parents=True)
    save_file(state, out / "open_clip_model.safetensors")
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--architecture", required=True, help="name in open_clip, or a JSON file of its kind")
    parser.add_argument("--drop", nargs="+", default=[], help="tensors to leave out")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new")
    given = parser.parse_args()
    named = Path(given.architecture)
    config = json.loads(named.read_text()) if named.suffix == ".json" else open_clip.get_model_config(given.architecture)
    if config is None:
        raise SystemExit(f"open_clip has no architecture {given.architecture}")
    write(given.out, *convert(read_state(given.file), config, given.drop))
    print(f"wrote {given.out}; use it with --backbone local:{given.out}")


if __name__ == "__main__":
    main()
