"""What a network is worth: figures, calibration, the floor beside them, and sources never seen."""
