"""One run, from its configuration to the files in its folder, and the classifier that it leaves."""
