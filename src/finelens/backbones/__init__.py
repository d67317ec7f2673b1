"""Vision-language models behind one interface: the embedded default, open_clip and timm towers, their tuning scopes, and where weights come from."""
