"""What scripts/report.py is made of: the run and its evaluations as they are read, the failures with pictures, the page."""
