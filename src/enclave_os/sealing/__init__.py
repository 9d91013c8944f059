"""What outlives a start: keys, CA, policy and counters, sealed to this measurement and kept by the host."""
