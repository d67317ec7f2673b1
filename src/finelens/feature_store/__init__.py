"""Features instead of pixels: what image towers gave and the cache keeps, feature files and folders, prototypes, support sets."""
