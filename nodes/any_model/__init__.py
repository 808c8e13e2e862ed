"""A model that runs in ComfyUI, as a ``TokenModel``: whatever MODEL, CLIP and VAE the user has.

These modules speak with ComfyUI's own, and are imported when a node is used.
"""
