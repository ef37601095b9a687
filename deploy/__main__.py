"""`python -m deploy` is `covariance`."""

from deploy.cli import main

main()
