"""From an evaluated run to a bundle with its model card."""
