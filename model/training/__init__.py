"""Training: from a recipe and data files to an artifact. `train` reads top to bottom like the picture of it."""
