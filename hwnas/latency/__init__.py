"""Latency: devices, runtimes that time ops on them, and the tables in which the times are kept."""
