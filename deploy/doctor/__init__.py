"""`covariance doctor`: every neighbour and every place that a study passes, asked in the order of its way."""
