"""The experiment in virtual time: the real pool, placement, policy and ramp over a model of GPUs and clients."""
