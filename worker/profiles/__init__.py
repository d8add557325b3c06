"""The profiles role: folds into Redis exactly once, features out."""
