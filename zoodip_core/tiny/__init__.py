"""The embedded tiny Stable Diffusion, its sample concepts, and how to score them."""
