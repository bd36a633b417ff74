"""What changes parameters: the loop and its tasks, optimizer, schedule, and the state of a run."""
