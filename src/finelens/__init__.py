"""finelens: label-free adaptation of vision-language models for fine-grained image classification."""

__version__ = "0.1.0"
