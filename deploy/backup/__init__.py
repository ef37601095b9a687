"""`covariance backup` and `restore`: what a backup is, how it is written, how it is brought back."""
