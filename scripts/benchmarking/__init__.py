"""What the benchmarks among the scripts share: clocks, memory, random batches, timed steps."""
