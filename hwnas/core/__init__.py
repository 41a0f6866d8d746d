"""The differentiable search core: choices, relaxations, expected latency, search, derivation, training."""
