"""A Stable Diffusion whose weights stay quantised: recognised, loaded, encoded with, predicted with."""
