"""Write the vectors of the ImageNet classes' texts that the embedded backbone is joined with: by the two pinned wheels and timm 1.0.31.

OMP_NUM_THREADS=1 python scripts/imagenet_texts.py
"""

from finelens.backbones.embedded import IMAGENET_TEXTS, encode_imagenet
from finelens.backbones.minilm import MiniLM
from finelens.storage.tensors import save_tensors

if __name__ == "__main__":
    save_tensors(IMAGENET_TEXTS, {"texts": encode_imagenet(MiniLM())})
