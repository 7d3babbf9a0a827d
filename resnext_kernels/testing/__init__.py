"""What tests and benchmarks share: problems, inputs, error gates, timing, the machine."""
