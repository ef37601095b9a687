"""The report's sixteen systems, and the runs that train them."""
