"""How fast: each stage beside plain diffusers, the original loop, and the least time that the hardware allows."""
