"""Features instead of pixels: the cache of what the image tower gave, feature files, and runs on them."""
