"""The review sheet: which photographs are worth a look, and what a person said about them."""
