"""The worker: scores the studies that the node has received, reports, and delivers."""
