"""`python -m realdata bridge`: the gradient subspace of an image task, and how much of it distilled sets hold."""
