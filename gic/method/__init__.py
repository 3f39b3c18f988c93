"""The paper's equations as pure functions: the forward diffusion, the posterior, the samplers.

It imports nothing of gic but its errors.
"""
