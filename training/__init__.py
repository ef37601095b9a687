"""Training: from films to a model bundle that the worker serves."""
