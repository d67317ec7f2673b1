"""Features instead of pixels: the cache of what image towers gave, feature files, and runs on them."""
