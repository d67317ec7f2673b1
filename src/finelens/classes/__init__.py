"""Class names, texts and heads; the labels and hints that speak of classes."""
