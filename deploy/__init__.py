"""What starts and operates the whole: the `covariance` command and the one-machine stack."""
