"""The networks, what of them learns, and weights to begin with."""
