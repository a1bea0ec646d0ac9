"""Choose a backbone for a set of photos on this machine, by measuring and by training."""
