"""What changes parameters: optimizer, schedule, precision, and the state of a run."""
