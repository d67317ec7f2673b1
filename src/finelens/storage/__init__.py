"""Files that survive a kill: atomic writing, safetensors, the cache, locks, and ``predictions.csv``."""
