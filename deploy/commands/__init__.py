"""The commands by noun. These files import nothing heavy: `covariance --help` answers at once."""
